"""One trial of one contender in this process: python -m benchmarks.contender SCENARIO MODULE PRECISION DIR WORKERS STEPS.

Prints one JSON line.
"""

import importlib
import json
import sys

import torch

from benchmarks.clock import StepClock
from benchmarks.scenarios import Job
from benchmarks.trials import THREADS


def main() -> None:
    name, module, precision, root, workers, steps = sys.argv[1:]
    job = Job(name, precision, root, int(workers), int(steps))
    torch.set_num_threads(THREADS)
    clock = StepClock()
    importlib.import_module(f"benchmarks.contenders.{module}").train(job)
    seconds = clock.seconds(job.scenario.warmup, job.steps)
    print("\n" + json.dumps({"images_per_s": job.steps * job.scenario.batch / seconds}))


if __name__ == "__main__":
    main()
