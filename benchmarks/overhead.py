"""What saving, tracking and starting cost: python -m benchmarks.overhead DIR [--n 5] [--parts saving tracking startup].

saving    resnet9 (6.6 M parameters, checkpoints of 53 MB), batch 128, bf16: one every 50 steps, and none
tracking  simple_cnn, batch 512, bf16: W&B offline, console, a log line a step and checkpoints each epoch, and none of it
startup   from the start of the process to the end of the first step, against benchmarks/plain_script.py; `--help`

saving and tracking: seconds of the same steps, by the wall clock, with the evaluations and saves that fall between
them. Both sides evaluate at the same steps.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    clock = StepClock()
    command(CONFIG, settings(part, root, steps, on=on))
    if part == "startup":
        print("\n" + json.dumps({"first_step": clock.times[0]}))
    else:
        print("\n" + json.dumps({"steps_s": clock.seconds(WARMUP, steps - WARMUP)}))


def pairs(part: str, root: str, steps: int, n: int) -> dict[str, Any]:
    """Seconds with and without."""
    again: Sequence[object] = ["-m", "benchmarks.overhead", root, "--parts", part, "--steps", steps, "--trial"]
    results = trials.interleave({"on": [*again, "on"], "off": [*again, "off"]}, n)
    return {
        "steps": steps - WARMUP,
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
