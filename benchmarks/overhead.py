"""What saving, tracking and starting cost: python -m benchmarks.overhead DIR [--n 5] [--parts saving tracking startup].

saving    resnet9 (6.6 M parameters, checkpoints of 53 MB), batch 128, bf16: one every 20 steps, and none
tracking  simple_cnn, batch 512, bf16: W&B offline, console, a log line a step and checkpoints each epoch, and none of it
startup   from the start of the process to the end of the first step, against benchmarks/plain_script.py; `--help`

saving and tracking: both sides take turns within each run (with, without, without, with, …), in blocks that hold one
save and one evaluation in their middle, as processes beside each other drift by more than what is looked for. The
seconds are those of the blocks, by the wall clock. What a start and an end cost is not in them, but it is in the direct
figures of the same runs: how long the training was held up in saves and log lines, and the processor time that was
spent on them beside it (the thread that writes, W&B's threads and process).
"""

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import trials

PARTS = ("saving", "tracking", "startup")
PLAIN_SCRIPT = Path(__file__).with_name("plain_script.py")
BLOCK = {"saving": 20, "tracking": 97}  # steps; 97 whole batches of 512 are an epoch of 50,000 images
BLOCKS = {"saving": 4, "tracking": 16}  # of one run
TURNS = ("on", "off", "off", "on")  # a drift that is even over four blocks cancels out


def settings(part: str, root: str) -> dict[str, object]:
    """Of one trial, for `distcnn train configs/simple_cnn.yaml`."""
    common = {"data.source": "folder", "data.root": root, "train.threads": trials.THREADS}
    if part == "startup":
        return common | {"train.duration": "1step", "tracking.wandb": "disabled"}
    block = BLOCK[part]
    common |= {"data.max_test": 1000, "train.precision": "bf16", "train.drop_last": True}
    common |= {"optim.name": "sgd", "optim.lr": 0.01, "eval.every": f"{block}step", "checkpoint.every": f"{block}step"}
    common |= {"train.duration": f"{block // 2 + BLOCKS[part] * block}step"}
    if part == "saving":
        return common | {"model.name": "resnet9", "train.batch_size": 128, "tracking.wandb": "disabled"}
    common |= {"train.batch_size": 512, "train.micro_batch": 128, "train.gradient_sum": "fp32"}
    return common | {"tracking.wandb": "offline"}


def trial(part: str, root: str) -> None:
    """One run in this process; prints one JSON line."""
    from benchmarks.clock import StepClock
    from benchmarks.contenders.distcnn import CONFIG, command

    clock = StepClock()
    if part == "startup":
        command(CONFIG, settings(part, root))
        print("\n" + json.dumps({"first_step": clock.times[0]}))
        return
    block = BLOCK[part]
    spent = Spent(lambda: turn(len(clock.times), block) == "on")
    command(CONFIG, settings(part, root))
    ends = clock.times[block // 2 - 1 :: block]
    seconds = dict.fromkeys(("on", "off"), 0.0)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        seconds[TURNS[i % len(TURNS)]] += end - begin
    print("\n" + json.dumps({**seconds, "held_s": spent.held_s, "beside_s": spent.beside_s}))


def turn(step: int, block: int) -> str:
    """Whether step number `step` is one with ("on") or without ("off"); half a block before the first one is a warm-up."""
    return TURNS[max(0, step - block // 2) // block % len(TURNS)]


class Spent:
    """Sums up, in this process, what saves and log lines cost, at the start too; while not `on`, there are none."""

    def __init__(self, on: Callable[[], bool]) -> None:
        from distcnn.checkpoint.writer import CheckpointWriter
        from distcnn.tracking.base import Trackers

        self.held_s = 0.0  # the training waited so long
        self.beside_s = 0.0  # processor time of other threads and processes
        self.on = on
        CheckpointWriter._write = self._timed("beside_s", time.thread_time, CheckpointWriter._write)  # type: ignore[method-assign]
        save = self._switched(self._timed("held_s", time.perf_counter, CheckpointWriter.save))
        CheckpointWriter.save = save  # type: ignore[method-assign]
        Trackers.log = self._switched(self._timed("held_s", time.perf_counter, Trackers.log))  # type: ignore[method-assign]
        finish = Trackers.finish

        def finished(trackers: Trackers, status: str, summary: Any) -> list[str]:
            helpers = [t.native_id for t in threading.enumerate() if t is not threading.main_thread()]
            me = psutil.Process()
            self.beside_s += sum(t.user_time + t.system_time for t in me.threads() if t.id in helpers)
            self.beside_s += sum(sum(child.cpu_times()[:2]) for child in me.children(recursive=True))
            return finish(trackers, status, summary)

        Trackers.finish = finished  # type: ignore[method-assign]

    def _timed(self, sum_of: str, clock: Callable[[], float], call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = clock()
            try:
                return call(*arguments, **options)
            finally:
                setattr(self, sum_of, getattr(self, sum_of) + clock() - began)

        return timed

    def _switched(self, call: Callable[..., None]) -> Callable[..., None]:
        def switched(*arguments: Any, **options: Any) -> None:
            if self.on():
                call(*arguments, **options)

        return switched


def blocks(part: str, root: str, n: int) -> dict[str, Any]:
    """Seconds of the blocks with and of those without, added up for each run."""
    runs = {"": ["-m", "benchmarks.overhead", root, "--parts", part, "--trial"]}
    results = trials.interleave(runs, n)
    found = {name: trials.column(results, name, 3)[""] for name in ("on", "off", "held_s", "beside_s")}
    return {
        "blocks": BLOCKS[part] // 2, "block": BLOCK[part], "steps_s": {side: found.pop(side) for side in ("on", "off")}, **found,
    }  # fmt: skip


def startup(root: str, n: int) -> dict[str, Any]:
    """Seconds to the first step, and of `--help`."""
    results = trials.interleave({
        "distcnn": ["-m", "benchmarks.overhead", root, "--parts", "startup", "--trial"],
        "plain": [PLAIN_SCRIPT],
        "help": ["-m", "distcnn", "--help"],
    }, n)  # fmt: skip
    for name in ("distcnn", "plain"):
        for result in results[name]:
            result["wall_s"] = result["first_step"] - result["started"]
    return {"seconds": trials.column(results, "wall_s", 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--out", type=Path, default=trials.RESULTS)
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)  # the trial itself
    options = parser.parse_args()
    if options.trial:
        trial(options.parts[0], options.root)
        return
    for part in options.parts:
        print(part, flush=True)
        found = startup(options.root, options.n) if part == "startup" else blocks(part, options.root, options.n)
        trials.keep(options.out, "overhead", part, found, options.root)


if __name__ == "__main__":
    sys.exit(main())
