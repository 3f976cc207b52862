"""`distcnn doctor`: is this machine, and are all ranks of this launcher, fit for a training?"""

import argparse
from pathlib import Path

from distcnn.commands.command import command_parser

EPILOG = """examples:
  distcnn doctor
  torchrun --standalone --nproc_per_node=4 -m distcnn doctor
  srun -N 2 --ntasks-per-node=4 python -m distcnn doctor --json

Start it as the training would be started: what a launcher sets is part of what it looks at. With several ranks it also
measures their clocks, all-reduces and links, over NCCL if each rank has a GPU of its own, otherwise over gloo on the
CPUs. Nothing is left behind. The exit code is 1 if anything failed.
"""


def run(arguments: list[str]) -> None:
    """Look, measure, and print on rank 0. Raises DistcnnError where something failed."""
    options = _parser().parse_args(arguments)
    from distcnn.doctor.examine import Request, examine
    from distcnn.doctor.tables import print_json, print_tables

    request = Request(Path(options.output_dir), options.backend, options.timeout)
    examine(request, print_json if options.json else print_tables)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("doctor", "[options]", __doc__, EPILOG)
    add = parser.add_argument
    add("--output-dir", default="runs", metavar="FOLDER", help="where runs would be written; default: runs")
    add("--backend", default="auto", choices=("auto", "gloo"), help="as train.backend; default: auto")
    add("--timeout", type=float, default=60, metavar="S", help="seconds to wait for the other ranks; default: 60")
    add("--json", action="store_true", help="print one JSON object instead of the tables")
    return parser
