"""`distcnn doctor`: is this machine, and are all ranks of this launcher, fit for a training?"""

from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_json, positive_float

EPILOG = """examples:
  distcnn doctor
  torchrun --standalone --nproc_per_node=4 -m distcnn doctor
  srun -N 2 --ntasks-per-node=4 python -m distcnn doctor --json

Start it as the training would be started: what a launcher sets is part of what it looks at. With several ranks it also
measures their clocks, all-reduces and links, over NCCL if each rank has a GPU of its own, otherwise over gloo on the
CPUs. Nothing is left behind. The exit code is 1 if anything failed.
"""


def doctor(parser: Parser) -> Handler:
    """Tell what of a machine and launcher will not work, and the fix."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("--output-dir", type=Path, default="runs", metavar="FOLDER", help="where runs would be written; default: runs")
    add("--backend", default="auto", choices=("auto", "gloo"), help="as train.backend; default: auto")
    add("--timeout", type=positive_float, default=60, metavar="S", help="seconds to wait for other ranks; default: 60")
    add_json(parser, "print one JSON object instead of the tables")
    return run


def run(options: Options) -> None:
    """Look, measure, and print on rank 0. Raises DistcnnError where something failed."""
    from distcnn.doctor.examine import Request, examine
    from distcnn.doctor.tables import print_json, print_tables

    request = Request(options.output_dir, options.backend, options.timeout)
    examine(request, print_json if options.json else print_tables)
