"""The protocol of a tracker."""

from collections.abc import Iterable
from typing import Any, Protocol

Record = dict[str, Any]  # one line of metrics.jsonl: {"kind": "train" | "eval" | "event", "step": int, …}


class Tracker(Protocol):
    """Takes records as they come. `finish` is called once, whatever happened."""

    def log(self, record: Record) -> None:
        """Take one record; never wait for a network."""

    def finish(self, status: str, summary: Record) -> None:
        """End with a status ("done" or what went wrong in a word) and the run's final numbers."""


class Trackers:
    """Several trackers as one; with none, as on every rank but 0, nothing happens."""

    def __init__(self, trackers: Iterable[Tracker] = ()):
        self.trackers = list(trackers)

    def log(self, record: Record) -> None:
        """Pass a record on to each."""
        for tracker in self.trackers:
            tracker.log(record)

    def finish(self, status: str, summary: Record) -> None:
        """End each."""
        for tracker in self.trackers:
            tracker.finish(status, summary)
