"""`distcnn bench step CONFIG`: the speed of a run's steps, their phases, and the machine's peak."""

import os
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_json, natural_int, positive_int
from distcnn.config.settings import load_settings
from distcnn.distributed.world import world_from
from distcnn.runs.records import to_json

EPILOG = """examples:
  distcnn bench step configs/cifar10_cnn.yaml
  distcnn bench step configs/cifar10_cnn.yaml --steps 50 --json --train.precision bf16
  distcnn bench step configs/cifar10_cnn.yaml --micro-batches --train.batch_size 2000
  torchrun --standalone --nproc_per_node=2 -m distcnn bench step configs/cifar10_cnn.yaml --train.threads 1

Nothing is written or evaluated. docs/performance.md explains each figure.
"""


def bench(parser: Parser) -> Handler:
    """Measure a run's training step against the machine's peak."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("what", choices=("step",), help="the training step")
    add("config", metavar="CONFIG.yaml", type=Path, help="the run")
    parser.add_settings()
    parser.set_defaults(problems=[])
    add("--steps", type=positive_int, default=20, metavar="N", help="steps to measure; default: 20")
    add("--warmup", type=natural_int, default=3, metavar="N", help="steps before the measurement; default: 3")
    add("--micro-batches", action="store_true", help="try several sizes of train.micro_batch, and name the fastest")
    add_json(parser)
    return run


def run(options: Options) -> None:
    """Measure and, on rank 0, print the figures. Raises InputError."""
    world = world_from(os.environ)
    settings = load_settings(options.config, options.settings, options.problems)
    from distcnn.bench.step import checked_config, measure_step
    from distcnn.bench.tables import print_tables

    config = checked_config(settings, world, micro_batches=options.micro_batches)
    found = measure_step(config, world, options.steps, options.warmup, micro_batches=options.micro_batches)
    if world.is_main:
        print_tables(found)
        if options.json:
            print(to_json(found), flush=True)
