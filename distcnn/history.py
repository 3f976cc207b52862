"""A run's folder, read back: what `report`, `runs` and `trials` know of a run."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from distcnn.errors import EXIT_PREEMPTED, BadInput
from distcnn.predictions import Predictions, load_predictions
from distcnn.records import Record

State = Literal["running", "done", "preempted", "interrupted", "failed", "died"]


@dataclass(frozen=True)
class History:
    """What a run has written so far. Damaged lines of its log are left out."""

    folder: Path
    records: list[Record]  # in their order
    settings: dict[str, Any]  # the resolved config, as nested plain values

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    def of(self, kind: str) -> list[Record]:
        """The train, eval or event records."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def evaluations(self) -> list[Record]:
        """The eval records; the last one is the newest."""
        return self.of("eval")

    @property
    def best(self) -> Record | None:
        """The evaluation of the highest accuracy."""
        return max(self.evaluations, key=lambda record: record["accuracy"], default=None)

    @property
    def starts(self) -> list[Record]:
        """The events of its start and of its resumes."""
        return [record for record in self.of("event") if record["event"] in ("started", "resumed")]

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of its newest start; empty if it has not started."""
        found: dict[str, Any] = self.environment.get("plan", {})
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """What its newest start says of where it ran; empty if it has not started."""
        found: dict[str, Any] = self.starts[-1].get("environment", {}) if self.starts else {}
        return found

    @property
    def images_per_s(self) -> float | None:
        """The median over the log."""
        speeds = [record["images_per_s"] for record in self.of("train")]
        return median(speeds) if speeds else None

    @property
    def step(self) -> int:
        """Optimizer steps that are in the log."""
        return max((record["step"] for record in self.records), default=0)

    @cached_property
    def state(self) -> State:
        """running: the log has no end, and a process holds the folder. died: none does."""
        last = self.of("event")[-1] if self.of("event") else {"event": ""}
        if last["event"] == "stopped":
            return "preempted" if last.get("exit_code") == EXIT_PREEMPTED else "interrupted"
        ends: dict[str, State] = {"done": "done", "failed": "failed"}
        return ends.get(last["event"]) or ("running" if _is_locked(self.folder) else "died")

    @property
    def reason(self) -> str:
        """Why it was stopped or failed, in its own words."""
        return str(self.of("event")[-1]["message"]) if self.state in ("preempted", "interrupted", "failed") else ""

    def predictions(self) -> Predictions | None:
        """Those of the newest evaluation, if they were kept. Raises BadInput where they are damaged."""
        return load_predictions(self.folder / "predictions.npz")


def read_history(folder: Path) -> History:
    """Raises BadInput where there is no run."""
    log = folder / "metrics.jsonl"
    if not log.is_file():
        raise BadInput(f"{folder}: not a run's folder: it holds no metrics.jsonl")
    try:
        lines = log.read_bytes().splitlines()
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        settings = {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder}: not readable: {error}") from error
    records = [record for record in map(_record, lines) if record is not None]
    return History(folder, records, settings if isinstance(settings, dict) else {})


_NUMBERS = {
    "train": ("step", "epoch", "lr", "images_per_s"),
    "eval": ("step", "accuracy", "correct", "total"),
    "event": ("step",),
}


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
        if all(isinstance(record[key], int | float) for key in _NUMBERS[record["kind"]]):
            return dict(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _is_locked(folder: Path) -> bool:
    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder of someone else's
        return False
