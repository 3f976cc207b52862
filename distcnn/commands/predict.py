"""`distcnn predict MODEL PATH…`: the most probable classes of images."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING

from distcnn.commands.parser import Handler, Options, Parser, add_model, add_views, positive_int
from distcnn.errors import DistcnnError, InputError
from distcnn.text import printable

if TYPE_CHECKING:
    from distcnn.inference.predictor import Prediction

EPILOG = """examples:
  distcnn predict runs/digits photo.png
  distcnn predict runs/cifar10_cnn/checkpoints/best.pt photos/ 'more/*.jpg' --top 3 --format csv --output found.csv
  distcnn predict model.safetensors photos/ --format jsonl | jq .
  torchrun --standalone --nproc_per_node=4 -m distcnn predict runs/digits photos/ --format jsonl --output found.jsonl

Images are turned upright, resized, cropped and normalised as in the model's training, and its precision and views are
used. Unreadable ones are named and left out; the exit code is then 1.
"""


def predict(parser: Parser) -> Handler:
    """Name the most probable classes of images."""
    parser.epilog, add = EPILOG, parser.add_argument
    add_model(parser)
    add("paths", metavar="PATH", nargs="+", help="images, folders of images, or patterns such as 'photos/*.jpg'")
    add("--top", type=positive_int, default=5, metavar="K", help="the K most probable classes; default: 5")
    add("--format", choices=tuple(WRITERS), default="table", help="of the output; default: table")
    add("--output", metavar="FILE", help="instead of stdout")
    add("--batch-size", type=positive_int, default=256, metavar="N", help="images per forward; default: 256")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add_views(parser)
    parser.set_defaults(problems=[])
    return run


def run(options: Options) -> None:
    """Predict and, on rank 0, print or write. Raises InputError, and DistcnnError where images could not be read."""
    problems: list[str] = options.problems
    output = Path(options.output) if options.output else None
    if output and not output.absolute().parent.is_dir():
        problems.append(f"--output {output}: no such folder; make it first")
    from distcnn.inference.images import find_images

    paths = find_images(options.paths, problems)
    if problems:
        raise InputError(problems)
    from rich.console import Console
    from rich.progress import track

    from distcnn.distributed.collectives import check_same
    from distcnn.distributed.cores import cores
    from distcnn.distributed.device import backend_of
    from distcnn.distributed.memory import first_out_of_memory_of_all_ranks
    from distcnn.distributed.rendezvous import process_group
    from distcnn.distributed.world import world_from
    from distcnn.inference.model import load_model
    from distcnn.inference.predictor import Predictor, in_order

    world = world_from(os.environ)
    views = {"eval.views": options.views} if options.views else {}
    overrides = {"train.device": options.device, **views}
    trained = load_model(options.model, overrides, world)
    predictor = Predictor(trained, top=options.top, threads=max(1, cores() // world.local_size))
    unreadable = []
    device, backend = trained.device, backend_of(trained.config, trained.device)
    with (
        process_group(world, device=device, backend=backend, timeout_s=trained.config.train.timeout) as store,
        first_out_of_memory_of_all_ranks(store),
        _opened(output if world.is_main else Path(os.devnull), options.format, predictor.top) as write,
    ):
        check_same({"the list of images": sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()[:12],
                    "the model's step": trained.description.step})  # fmt: skip
        found = in_order(predictor, paths, options.batch_size, world)
        console = Console(stderr=True, quiet=not world.is_main)
        bar = track(found, "predicting", len(paths), console=console, transient=True, disable=not console.is_terminal)
        for prediction in bar:
            if not prediction.problem:
                write(prediction)
                continue
            unreadable.append(prediction.path)
            if world.is_main:
                message = f"{printable(prediction.path)}: not readable as an image ({printable(prediction.problem)})"
                console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if unreadable:
        raise DistcnnError(f"{len(unreadable)} of {len(paths)} files could not be read as images, and were left out")


@contextmanager
def _opened(output: Path | None, kind: str, top: int) -> Iterator[Callable[["Prediction"], None]]:
    """What takes predictions, for stdout or a file, which is whole or absent."""
    from distcnn.files import atomic_file

    writer = WRITERS[kind]
    write_text = partial(open, mode="w", encoding="utf-8", errors="surrogateescape", newline="")
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # file names are bytes: as they came, so they go
        with writer(sys.stdout, top) as write:
            yield write
    elif not output.is_file() and output.exists():  # a device, a pipe
        with write_text(output) as file, writer(file, top) as write:
            yield write
    else:
        try:
            with atomic_file(output) as aside, write_text(aside) as file, writer(file, top) as write:
                yield write
        except OSError as error:
            raise DistcnnError(f"--output {output}: {error.strerror or error}; nothing was written") from error


@contextmanager
def _table(file: IO[str], top: int) -> Iterator[Callable[["Prediction"], None]]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    for place in range(1, top + 1):
        table.add_column("class" if place == 1 else f"{place}.", overflow="fold")
        table.add_column("", justify="right")

    def write(prediction: "Prediction") -> None:
        cells = [Text(printable(prediction.path))]
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            cells += [Text(printable(name)), Text(f"{probability:.1%}")]
        table.add_row(*cells)

    yield write
    Console(file=file, highlight=False, width=None if file.isatty() else 10_000).print(table)


@contextmanager
def _csv(file: IO[str], top: int) -> Iterator[Callable[["Prediction"], None]]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["path", *(f"{what}_{place}" for place in range(1, top + 1) for what in ("class", "probability"))])

    def write(prediction: "Prediction") -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        rows.writerow([prediction.path, *(value for pair in pairs for value in pair)])

    yield write


@contextmanager
def _jsonl(file: IO[str], top: int) -> Iterator[Callable[["Prediction"], None]]:  # noqa: ARG001
    def write(prediction: "Prediction") -> None:
        classes, probabilities = list(prediction.classes), list(prediction.probabilities)
        file.write(json.dumps({"path": prediction.path, "classes": classes, "probabilities": probabilities}) + "\n")

    yield write


WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}
