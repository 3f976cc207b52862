"""Run each tracking library in its own thread, isolated from training."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator

from distcnn.files import waiting
from distcnn.runs.records import Record
from distcnn.tracking.backend import Backend, TrackedRun, numbers

THREAD_NAME = "distcnn-tracker-"  # followed by the library's name
_BACKLOG = 50_000  # records queued for a slow library; further ones are dropped, with one warning


class ThreadedTracker:
    """A Tracker for one library. If it raises or blocks, the cost is a warning, and `timeout` seconds at the end.

    `begin` opens the library, or returns None to disable it. After a resume, the earlier steps of metrics.jsonl are
    replayed first.
    """

    def __init__(self, name: str, run: TrackedRun, begin: Callable[[TrackedRun], Backend | None], timeout: float):
        self.name, self.run, self.begin, self.timeout = name, run, begin, timeout
        self.warned = False
        self.inbox: queue.Queue[tuple[str, Record]] = queue.Queue(_BACKLOG)
        self.thread = threading.Thread(target=self._work, name=THREAD_NAME + name, daemon=True)
        self.thread.start()

    def log(self, record: Record) -> None:
        """Queue one record, without waiting."""
        if not self.thread.is_alive():
            return
        try:
            self.inbox.put_nowait(("log", record))
        except queue.Full:
            self._warn(f"{self.name} is stuck; it has missed records from step {record.get('step')} on")

    def finish(self, status: str, summary: Record) -> None:
        """Wait for the library to finish, up to the timeout; at most 5 s if a scheduler is about to end the run."""
        timeout = min(self.timeout, 5.0) if status == "stopped" else self.timeout
        if self.thread.is_alive():
            try:
                self.inbox.put_nowait(("finish", {"status": status, "summary": summary}))
            except queue.Full:
                return
            with waiting(f"{self.name} to finish"):
                self.thread.join(timeout)
        if self.thread.is_alive():
            self._warn(f"{self.name} did not finish within {timeout:g} s and was abandoned")

    def _warn(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            print(f"warning: {message}; training continues, and metrics.jsonl is complete", file=sys.stderr)

    def _work(self) -> None:
        try:
            backend = self.begin(self.run)
            if backend is None:
                return
            self._refill(backend)
            while True:
                what, record = self.inbox.get()
                if what == "finish":
                    break
                if values := numbers(record):
                    backend.log(values, record["step"])
            backend.finish(record["status"], record["summary"])
        except Exception as error:  # libraries can raise anything
            self._warn(f"{self.name} failed ({type(error).__name__}: {error})")

    def _refill(self, backend: Backend) -> None:
        if refill := getattr(backend, "refill", None):
            refill(self._before())
        else:
            for step, values in self._before():
                backend.log(values, step)

    def _before(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield (step, numbers) of all records before a resume; nothing if the run was not resumed."""
        if not self.run.start_step:
            return
        history = self.run.history()
        if history.updated is None:
            raise OSError("; ".join(history.damage))
        for record in history.records:
            # The run is continuing: later records arrive through the inbox.
            if record["step"] <= self.run.start_step and (values := numbers(record)):
                yield record["step"], values
