"""What a tracking library is to distcnn, the user's own too: the run it is given, and the three calls that it gets."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from distcnn.config.plan import Plan
from distcnn.config.schema import Config
from distcnn.config.settings import to_dict
from distcnn.runs.history import History, read_history
from distcnn.runs.predictions import PREDICTIONS, load_predictions
from distcnn.runs.records import Record

_PREFIXES = {"train": "train", "eval": "test"}  # of the names of numbers, by the kind of record


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracking library needs to know it."""

    folder: Path  # files may be written into it
    id: str  # eight hexadecimal digits, the same after every resume
    config: Config
    plan: Plan
    start_step: int = 0  # optimizer steps done before this start: 0, or those of the checkpoint that it resumes from

    @property
    def settings(self) -> dict[str, Any]:
        """The config as in config.yaml, and the plan as `plan`, in plain nested values."""
        return to_dict(self.config) | {"plan": asdict(self.plan)}

    def history(self) -> History:
        """Read what the run has written so far. Raises InputError where there is no run in the folder."""
        return read_history(self.folder)

    def mistakes(self) -> list[tuple[Any, str, str, float, str]]:
        """The most confident mistakes of the newest evaluation, the most confident first.

        Each is (image [S, S, 3] uint8, true class, predicted class, its probability, file). Empty where the evaluation
        has kept none. Raises InputError where its file is damaged.
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
    """One run in a tracking library; made as `Backend(run, **arguments)` with a TrackedRun.

    All of it, the making too, is called in one thread of its own on rank 0; what it raises ends it with a warning, and
    nothing else. After a resume the numbers of all steps before come first: it may have been behind metrics.jsonl when
    its process was killed. They are given to `log`, or, in one call at every start, to a method
    `refill(history: Iterable[tuple[int, dict[str, float]]])` of a library that holds some of them already.
    """

    def log(self, values: dict[str, float], step: int) -> None:
        """Take numbers by name, such as `train/loss`; the steps never fall."""

    def finish(self, status: str, summary: Record) -> None:
        """End: `status` is done, stopped, failed or the name of an exception; `summary` holds the final numbers."""


def numbers(record: Record) -> dict[str, float]:
    """All numbers of a train or eval record by name, the same names in every library; of events there are none.

    `loss` of a train record is `train/loss`, `{"per_class": {"cat": 0.9}}` of an eval record is `test/per_class/cat`.
    No name is the beginning of another up to a slash: to some libraries that is a folder.
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
