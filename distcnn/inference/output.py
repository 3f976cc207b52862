"""Write predictions as a table, CSV or JSON lines, to stdout or atomically to a file."""

import csv
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from distcnn.errors import DistcnnError
from distcnn.files import atomic_file
from distcnn.runs.records import to_json
from distcnn.text import printable

if TYPE_CHECKING:  # it imports torch, and a command's help needs only the writers' names
    from distcnn.inference.predictor import Prediction

Write = Callable[["Prediction"], None]


@contextmanager
def open_output(output: Path | None, kind: str, top: int) -> Iterator[Write]:
    """Yield a function that writes one prediction of `top` classes, to a file or, if `output` is None, to stdout.

    Raises DistcnnError if the file cannot be written.
    """
    writer = WRITERS[kind]
    write_text = partial(open, mode="w", encoding="utf-8", errors="surrogateescape", newline="")
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # writes non-UTF-8 file names unchanged
        with writer(sys.stdout, top) as write:
            yield write
    elif not output.is_file() and output.exists():  # a device or a pipe
        with write_text(output) as file, writer(file, top) as write:
            yield write
    else:
        try:
            with atomic_file(output) as aside, write_text(aside) as file, writer(file, top) as write:
                yield write
        except OSError as error:
            raise DistcnnError(f"--output {output}: {error.strerror or error}; nothing was written") from error


@contextmanager
def _table(file: IO[str], top: int) -> Iterator[Write]:
    from rich.console import Console  # a command's help does not need it
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
def _csv(file: IO[str], top: int) -> Iterator[Write]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["path", *(f"{what}_{place}" for place in range(1, top + 1) for what in ("class", "probability"))])

    def write(prediction: "Prediction") -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        rows.writerow([prediction.path, *(value for pair in pairs for value in pair)])

    yield write


@contextmanager
def _jsonl(file: IO[str], top: int) -> Iterator[Write]:  # noqa: ARG001
    def write(prediction: "Prediction") -> None:
        classes, probabilities = list(prediction.classes), list(prediction.probabilities)
        file.write(to_json({"path": prediction.path, "classes": classes, "probabilities": probabilities}) + "\n")

    yield write


WRITERS: dict[str, Callable[[IO[str], int], AbstractContextManager[Write]]] = {
    "table": _table,
    "csv": _csv,
    "jsonl": _jsonl,
}
