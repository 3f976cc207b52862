"""The tracker protocol, and a container of trackers."""

import threading
from collections.abc import Iterable
from typing import Protocol

from distcnn.runs.records import Record


class Tracker(Protocol):
    """Receives the records of a run. `finish` is called exactly once, however the run ends."""

    def log(self, record: Record) -> None:
        """Log one record, without waiting for a network."""

    def finish(self, status: str, summary: Record) -> str | None:
        """Finish with a status (done, failed, stopped or the name of an exception) and the run's final numbers.

        Returns a description of lost records, if the tracker guarantees to lose none.
        """


class Trackers:
    """A container of trackers, empty on all ranks except 0. Thread-safe."""

    def __init__(self, trackers: Iterable[Tracker] = ()):
        self.trackers = list(trackers)
        self.lock = threading.Lock()

    def log(self, record: Record) -> None:
        """Pass a record to each tracker."""
        with self.lock:
            for tracker in self.trackers:
                tracker.log(record)

    def finish(self, status: str, summary: Record) -> list[str]:
        """Finish each tracker; return descriptions of what was lost."""
        with self.lock:
            lost = [tracker.finish(status, summary) for tracker in self.trackers]
        return [what for what in lost if what]
