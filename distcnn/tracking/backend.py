"""The interface to tracking libraries, built-in or your own: the run they are given, and the calls they receive."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from distcnn.config.plan import Plan, Workload
from distcnn.config.schema import Config
from distcnn.config.settings import to_dict
from distcnn.runs.history import History, read_history
from distcnn.runs.predictions import PREDICTIONS, load_predictions
from distcnn.runs.records import Record

_PREFIXES = {"train": "train", "eval": "test"}  # kind of record → prefix of its metric names


@dataclass(frozen=True)
class TrackedRun:
    """The run, as passed to a tracking library."""

    folder: Path  # a backend may write files into it
    id: str  # eight hexadecimal digits, the same after every resume
    config: Config
    plan: Plan
    workload: Workload
    start_step: int = 0  # optimizer steps before this start: 0, or those of the resumed checkpoint

    @property
    def settings(self) -> dict[str, Any]:
        """The config as in config.yaml, with plan and workload merged as `plan`; nested plain values."""
        return to_dict(self.config) | {"plan": asdict(self.plan) | asdict(self.workload)}

    def history(self) -> History:
        """Read what the run has written so far. Raises InputError if the folder has no metrics.jsonl."""
        return read_history(self.folder)

    def mistakes(self) -> list[tuple[Any, str, str, float, str]]:
        """Return the most confident errors of the last evaluation, most confident first.

        Each is (image [S, S, 3] uint8, true class, predicted class, its probability, file). Empty if the evaluation
        kept no predictions. Raises InputError if predictions.npz is damaged.
        """
        run = self.history()
        found, last = load_predictions(self.folder / PREDICTIONS), run.evaluations[-1] if run.evaluations else None
        if found is None or last is None or found.step != last["step"] or "per_class" not in last:
            return []
        names = list(last["per_class"])
        return [
            (
                found.thumbnails[place], names[found.labels[row]], names[found.best[row, 0]],
                float(found.probabilities[row, 0]), found.files[place] if found.files else f"image {row}",
            )
            for place, row in enumerate(found.mistakes.tolist())
        ]  # fmt: skip


class Backend(Protocol):
    """One run in a tracking library, constructed as `Backend(run, **arguments)` with a TrackedRun.

    Everything, the constructor included, is called in one dedicated thread on rank 0. An exception disables the backend
    with a warning; training continues. A resumed run first replays the metrics of all earlier steps, as the killed
    process may have been behind metrics.jsonl. They are passed to `log`, or, if the backend has a method
    `refill(history: Iterable[tuple[int, dict[str, float]]])`, to that, in one call at every start.
    """

    def log(self, values: dict[str, float], step: int) -> None:
        """Log metrics by name, such as `train/loss`; steps never decrease."""

    def finish(self, status: str, summary: Record) -> None:
        """Finish: `status` is done, stopped, failed or the name of an exception; `summary` has the final numbers."""


def numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a train or eval record by name, the same names for every library; {} for an event.

    `loss` of a train record is `train/loss`; `{"per_class": {"cat": 0.9}}` of an eval record is `test/per_class/cat`.
    No name is a path prefix of another, as some libraries treat a prefix as a folder.
    """
    if record["kind"] not in _PREFIXES:
        return {}
    own = {key: value for key, value in record.items() if key not in ("step", "epoch")}
    return dict([*_named(_PREFIXES[record["kind"]], own), *_named("epoch", record.get("epoch"))])


def _named(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _named(f"{name}/{key}", one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
