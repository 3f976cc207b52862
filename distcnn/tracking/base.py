"""The protocol of a tracker, and several trackers as one."""

import threading
from collections.abc import Iterable
from typing import Protocol

from distcnn.runs.records import Record


class Tracker(Protocol):
    """Takes records as they come. `finish` is called once, whatever happened."""

    def log(self, record: Record) -> None:
        """Take one record; never wait for a network."""

    def finish(self, status: str, summary: Record) -> str | None:
        """End with a status and the run's final numbers: done, failed, stopped or the name of an exception.

        Returns what it has lost, if it promised to lose nothing.
        """


class Trackers:
    """Several trackers as one; with none, as on every rank but 0, nothing happens. Any thread may log."""

    def __init__(self, trackers: Iterable[Tracker] = ()):
        self.trackers = list(trackers)
        self.lock = threading.Lock()

    def log(self, record: Record) -> None:
        """Pass a record on to each."""
        with self.lock:
            for tracker in self.trackers:
                tracker.log(record)

    def finish(self, status: str, summary: Record) -> list[str]:
        """End each; return what they have lost."""
        with self.lock:
            lost = [tracker.finish(status, summary) for tracker in self.trackers]
        return [what for what in lost if what]
