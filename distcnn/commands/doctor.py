"""`distcnn doctor`: check this machine, and all ranks of this launcher, before a training."""

from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_json, positive_float

EPILOG = """examples:
  distcnn doctor
  torchrun --standalone --nproc_per_node=4 -m distcnn doctor
  srun -N 2 --ntasks-per-node=4 python -m distcnn doctor --json

Start it as the training would be started, because it also checks what the launcher sets. With several ranks it measures
their clocks, all-reduces and links, over NCCL if each rank has its own GPU, otherwise over gloo on the CPUs. It leaves
no files behind. The exit code is 1 if a check failed.
"""


def doctor(parser: Parser) -> Handler:
    """Check machine, launcher and network, and suggest fixes."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("--output-dir", type=Path, default="runs", metavar="FOLDER", help="where runs will be written; default: runs")
    add("--backend", default="auto", choices=("auto", "gloo"), help="as train.backend; default: auto")
    add("--timeout", type=positive_float, default=60, metavar="S", help="seconds to wait for other ranks; default: 60")
    add_json(parser, "print one JSON object instead of the tables")
    return run


def run(options: Options) -> None:
    """Check, measure, and print on rank 0. Raises DistcnnError if a check failed."""
    from distcnn.doctor.examine import Request, examine
    from distcnn.doctor.tables import print_json, print_tables

    request = Request(options.output_dir, options.backend, options.timeout)
    examine(request, print_json if options.json else print_tables)
