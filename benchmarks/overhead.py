"""What saving, tracking and starting cost: python -m benchmarks.overhead DIR [--n 5] [--parts saving tracking startup].

saving    resnet9 (6.6 M parameters, checkpoints of 53 MB), batch 128, bf16: one every 50 steps, and none
tracking  simple_cnn, batch 512, bf16: W&B offline, console, a log line a step and checkpoints each epoch, and none of it
startup   from the start of the process to the end of the first step, against benchmarks/plain_script.py; `--help`

saving and tracking: seconds of the same steps, by the wall clock, with the evaluations and saves that fall between
them. Both sides evaluate at the same steps. Where the machine's drift is larger than what is looked for, the direct
figures of the same runs tell more: how long the training was held up in saves and log lines, and the processor time
that was spent on them beside it (the thread that writes, W&B's threads and process).
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import trials

PARTS = ("saving", "tracking", "startup")
PLAIN_SCRIPT = Path(__file__).with_name("plain_script.py")
WARMUP = 10
EPOCH = 97  # whole batches of 512 in 50,000 images


def settings(part: str, root: str, steps: int, *, on: bool) -> dict[str, object]:
    """Of one trial, for `distcnn train configs/simple_cnn.yaml`."""
    common = {"data.source": "folder", "data.root": root, "train.threads": trials.THREADS}
    end = f"{steps}step"
    if part == "startup":
        return common | {"train.duration": "1step", "tracking.wandb": "disabled"}
    common |= {"data.max_test": 1000, "train.precision": "bf16", "train.duration": end, "train.drop_last": True}
    common |= {"optim.name": "sgd", "optim.lr": 0.01}
    if part == "saving":
        return common | {
            "model.name": "resnet9", "train.batch_size": 128, "tracking.wandb": "disabled",
            "eval.every": end, "checkpoint.every": "50step" if on else end,
        }  # fmt: skip
    common |= {"train.batch_size": 512, "train.micro_batch": 128, "train.gradient_sum": "fp32"}
    common |= {"eval.every": f"{EPOCH}step", "tracking.console": on, "tracking.wandb": "offline" if on else "disabled"}
    return common | {"checkpoint.every": f"{EPOCH}step" if on else end, "tracking.log_every": 10 if on else steps}


def trial(part: str, root: str, steps: int, *, on: bool) -> None:
    """One run in this process; prints one JSON line."""
    from benchmarks.clock import StepClock
    from benchmarks.contenders.distcnn import CONFIG, command

    if not on:
        from distcnn.training.saver import Saver

        Saver.save = lambda *_, **__: None  # type: ignore[method-assign]  # else the best weights would be saved
    spent = Spent() if on and part != "startup" else None
    clock = StepClock()
    command(CONFIG, settings(part, root, steps, on=on))
    if part == "startup":
        print("\n" + json.dumps({"first_step": clock.times[0]}))
        return
    found = {"steps_s": clock.seconds(WARMUP, steps - WARMUP)}
    if spent:
        found |= {"held_s": spent.held_s, "beside_s": spent.beside_s}
    print("\n" + json.dumps(found))


class Spent:
    """Sums up, in this process, what saves and log lines cost: all of a run's, also those of its start and end."""

    def __init__(self) -> None:
        from distcnn.tracking.base import Trackers
        from distcnn.training.saver import Saver

        self.held_s = 0.0  # the training waited so long
        self.beside_s = 0.0  # processor time of other threads and processes
        Saver._write = self._timed("beside_s", time.thread_time, Saver._write)  # type: ignore[method-assign]
        Saver.save = self._timed("held_s", time.perf_counter, Saver.save)  # type: ignore[method-assign]
        Trackers.log = self._timed("held_s", time.perf_counter, Trackers.log)  # type: ignore[method-assign]
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


def pairs(part: str, root: str, steps: int, n: int) -> dict[str, Any]:
    """Seconds with and without."""
    again: Sequence[object] = ["-m", "benchmarks.overhead", root, "--parts", part, "--steps", steps, "--trial"]
    results = trials.interleave({"on": [*again, "on"], "off": [*again, "off"]}, n)
    spent = {"on": results["on"]}  # the other side has nothing to spend it on
    return {
        "steps": steps - WARMUP,
        "held_s": trials.column(spent, "held_s", 3)["on"],
        "beside_s": trials.column(spent, "beside_s", 3)["on"],
        "steps_s": trials.column(results, "steps_s", 3),
        "wall_s": trials.column(results, "wall_s", 3),
    }


def startup(root: str, n: int) -> dict[str, Any]:
    """Seconds to the first step, and of `--help`."""
    results = trials.interleave({
        "distcnn": ["-m", "benchmarks.overhead", root, "--parts", "startup", "--trial", "on"],
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
    parser.add_argument("--steps", type=int, help="of each run; default: 260 for saving, 4 epochs for tracking")
    parser.add_argument("--out", type=Path, default=trials.RESULTS)
    parser.add_argument("--trial", choices=("on", "off"), help=argparse.SUPPRESS)  # the trial itself
    options = parser.parse_args()
    if options.trial:
        trial(options.parts[0], options.root, options.steps or 1, on=options.trial == "on")
        return
    for part in options.parts:
        print(part, flush=True)
        # Some steps after the last save, so that its writing is seen.
        steps = options.steps or (260 if part == "saving" else 4 * EPOCH)
        found = startup(options.root, options.n) if part == "startup" else pairs(part, options.root, steps, options.n)
        trials.keep(options.out, "overhead", part, found, options.root)


if __name__ == "__main__":
    sys.exit(main())
