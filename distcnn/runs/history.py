"""Read a run's folder, of a finished run or one that is running, for commands and trackers."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from distcnn.config.keys import SECTIONS
from distcnn.config.yaml_text import compose, construct
from distcnn.errors import EXIT_PREEMPTED, InputError
from distcnn.files import open_regular
from distcnn.runs.folder import is_locked
from distcnn.runs.records import Record, parse_record
from distcnn.text import plural

State = Literal["running", "done", "preempted", "interrupted", "failed", "died", "unreadable"]
_LARGEST_CONFIG = 1 << 17  # bytes; a resolved one has a few thousand, and PyYAML reads 50 kB per second
_LONGEST_LINE = 1 << 28  # bytes; the confusion matrix of 10,000 classes takes 200 MB


@dataclass(frozen=True)
class History:
    """What a run has written so far; `damage` lists what could not be read."""

    folder: Path
    records: list[Record]  # in order of writing
    settings: dict[str, Any]  # the resolved config, as nested plain values; empty if unreadable
    damage: tuple[str, ...] = ()  # one text per damaged file
    updated: float | None = None  # time of the last write to metrics.jsonl; None if unreadable

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name or self.folder.absolute().name

    def of(self, kind: str) -> list[Record]:
        """Return the records of one kind: train, eval or event."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def evaluations(self) -> list[Record]:
        """The eval records; the last one is the newest."""
        return self.of("eval")

    @property
    def best(self) -> Record | None:
        """The eval record with the highest accuracy."""
        return max(self.evaluations, key=lambda record: record["accuracy"], default=None)

    @property
    def starts(self) -> list[Record]:
        """The event records of the start and of all resumes."""
        return [record for record in self.of("event") if record["event"] in ("started", "resumed")]

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the last start; empty if the run has not started."""
        found: dict[str, Any] = self.environment.get("plan", {})
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """The environment logged by the last start; empty if the run has not started."""
        found: dict[str, Any] = self.starts[-1].get("environment", {}) if self.starts else {}
        return found

    @property
    def images_per_s(self) -> float | None:
        """The median throughput over the log, in images per second."""
        speeds = [record["images_per_s"] for record in self.of("train")]
        return median(speeds) if speeds else None

    @property
    def step(self) -> int:
        """The last optimizer step in the log."""
        return max((record["step"] for record in self.records), default=0)

    @cached_property
    def state(self) -> State:
        """running: the log has no end event and the folder is locked. died: not locked. unreadable: the log is."""
        if self.updated is None:
            return "unreadable"
        last = self.of("event")[-1] if self.of("event") else {"event": ""}
        if last["event"] == "stopped":
            return "preempted" if last.get("exit_code") == EXIT_PREEMPTED else "interrupted"
        ends: dict[str, State] = {"done": "done", "failed": "failed"}
        return ends.get(last["event"]) or ("running" if is_locked(self.folder) else "died")

    @property
    def reason(self) -> str:
        """The message of the event that stopped or failed the run, or ""."""
        return (
            str(self.of("event")[-1].get("message", "")) if self.state in ("preempted", "interrupted", "failed") else ""
        )

    def summary(self) -> dict[str, Any]:
        """Return one row of a table of runs, with None for unknown values."""
        last, best = self.evaluations[-1] if self.evaluations else {}, self.best or {}
        return {
            "name": self.name, "state": self.state, "step": None if self.updated is None else self.step,
            "steps": self.plan.get("steps"), "accuracy": last.get("accuracy"), "best": best.get("accuracy"),
            "loss": last.get("loss"), "images_per_s": self.images_per_s, "updated": self.updated,
            "why": "; ".join(filter(None, (self.reason, *self.damage))),
        }  # fmt: skip


def read_history(folder: Path) -> History:
    """Read a run's folder, as far as it is readable. Raises InputError if it has no metrics.jsonl."""
    damage, records, updated = list[str](), list[Record](), None
    log = folder / "metrics.jsonl"
    try:
        with open_regular(log) as file:
            records, lost = _records(iter(lambda: file.readline(_LONGEST_LINE), b""))
            updated = os.fstat(file.fileno()).st_mtime
        if lost:
            damage.append(f"metrics.jsonl: {plural(lost, 'damaged line')} left out")
    except (FileNotFoundError, NotADirectoryError):
        if not log.is_symlink():
            raise InputError(f"{folder}: not a run's folder: it holds no metrics.jsonl") from None
        damage.append("metrics.jsonl: a link to nothing")
    except OSError as error:
        damage.append(f"metrics.jsonl: {error.strerror}")
    settings: dict[str, Any] = {}
    try:
        settings = _settings(folder / "config.yaml")
    except OSError as error:
        damage.append(f"config.yaml: {error.strerror}")
    except ValueError as error:
        damage.append(f"config.yaml: {error}")
    return History(folder, records, settings, tuple(damage), updated)


def _settings(path: Path) -> dict[str, Any]:
    """Read a resolved config. Raises OSError or ValueError."""
    with open_regular(path) as file:
        data = file.read(_LARGEST_CONFIG + 1)
    if len(data) > _LARGEST_CONFIG:
        raise ValueError(f"larger than {_LARGEST_CONFIG >> 10} kB, so not a config")
    root = compose(data)
    if root is None:
        raise ValueError("empty")
    settings: dict[str, Any] = _plain(construct(root))
    if wrong := [key for key in SECTIONS if not isinstance(settings.get(key, {}), dict)]:
        raise ValueError(f"{', '.join(wrong)} should be a section")
    return settings


def _plain(value: Any) -> Any:
    """Convert to JSON types: YAML also has dates, bytes, sets, keys that are not strings, NaN and infinity.

    Raises ValueError for an integer beyond 64 bits, as Python cannot print one of more than 4,300 digits.
    """
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("holds an integer of 2^63 or more")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _records(lines: Iterable[bytes]) -> tuple[list[Record], int]:
    """Parse records, and count invalid lines. An unterminated last line is still being written, and not counted."""
    records, lost = list[Record](), 0
    for line in lines:
        record = parse_record(line)
        if record is not None:
            records.append(record)
        elif line.endswith(b"\n") or len(line) == _LONGEST_LINE:
            lost += 1
    return records, lost
