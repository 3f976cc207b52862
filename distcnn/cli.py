"""The command line: dispatches to the commands. Imports no torch, so that `--help` is fast."""

import difflib
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from distcnn import __version__
from distcnn.commands import COMMANDS
from distcnn.commands.parser import Parser, command_parser, command_parsers
from distcnn.distributed.exit import exit_code_of
from distcnn.distributed.shutdown import end_process
from distcnn.errors import InputError

EPILOG = """examples:
  distcnn train configs/simple_cnn.yaml
  distcnn train configs/simple_cnn.yaml --data.source folder --data.root DIR --train.duration 5ep
  torchrun --standalone --nproc_per_node=2 -m distcnn train configs/cifar10_cnn.yaml --optim.lr 0.1
  distcnn evaluate runs/simple_cnn
  distcnn trials configs/digits.yaml -n 5
  distcnn runs --sort accuracy
  distcnn report runs/simple_cnn
  distcnn predict runs/simple_cnn photos/ --top 3
  distcnn export runs/simple_cnn --format onnx
  torchrun --standalone --nproc_per_node=2 -m distcnn doctor
  distcnn bench step configs/cifar10_cnn.yaml
  distcnn slurm configs/cifar10_resnet18.yaml --nodes 1 --gpus-per-node 4 --time 02:00:00

exit codes: 0 done, 1 failed, 2 bad input, 75 preempted (requeue: it continues), 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default from sys.argv; return its exit code."""
    return exit_code_of(partial(_run, sys.argv[1:] if arguments is None else list(arguments)))


def program() -> NoReturn:
    """Run the program `distcnn`: run one command, and exit."""
    end_process(main())


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        parser = _parser()
        parser.parse(words)
        parser.print_help()
        return
    name, *rest = words
    if name not in COMMANDS.names():
        near = difflib.get_close_matches(name, COMMANDS.names(), n=1)
        meant = f"did you mean {near[0]}?" if near else f"valid: {', '.join(COMMANDS.names())}"
        raise InputError(f"distcnn {name}: no such command; {meant}")
    parser = command_parser(name)
    parser.run(parser.parse(rest))


def _parser() -> Parser:
    """Return the parser of `distcnn` itself, for its help."""
    parser = Parser("distcnn", description="Distributed training of CNN image classifiers in PyTorch.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"distcnn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", help="see distcnn COMMAND --help")
    for name, command in command_parsers():
        commands.add_parser(name, help=(command.description or "").partition("\n")[0].rstrip("."))
    return parser
