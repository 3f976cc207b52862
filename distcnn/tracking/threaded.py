"""Run each tracking library in its own thread, isolated from training."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator

from distcnn.files import waiting
from distcnn.runs.records import Record
from distcnn.tracking.backend import Backend, TrackedRun, numbers

THREAD_NAME = "distcnn-tracker-"  # and the library's name
_BACKLOG = 50_000  # records kept for a library that is slow; beyond it they are dropped, with one warning


class ThreadedTracker:
    """A Tracker of one library. If it raises or blocks, that costs a warning, and `timeout` seconds at the end.

    A resumed run's library is first given what the run's metrics.jsonl holds of the steps before. `begin` opens it;
    None: there is nothing to do.
    """

    def __init__(self, name: str, run: TrackedRun, begin: Callable[[TrackedRun], Backend | None], timeout: float):
        self.name, self.run, self.begin, self.timeout = name, run, begin, timeout
        self.warned = False
        self.inbox: queue.Queue[tuple[str, Record]] = queue.Queue(_BACKLOG)
        self.thread = threading.Thread(target=self._work, name=THREAD_NAME + name, daemon=True)
        self.thread.start()

    def log(self, record: Record) -> None:
        """Hand over one record without waiting."""
        if not self.thread.is_alive():
            return
        try:
            self.inbox.put_nowait(("log", record))
        except queue.Full:
            self._warn(f"{self.name} is stuck; it has missed records from step {record.get('step')} on")

    def finish(self, status: str, summary: Record) -> None:
        """Let it finish, within the bounded time; shorter for a run that a scheduler is about to end."""
        timeout = min(self.timeout, 5.0) if status == "stopped" else self.timeout
        if self.thread.is_alive():
            try:
                self.inbox.put_nowait(("finish", {"status": status, "summary": summary}))
            except queue.Full:
                return
            with waiting(f"{self.name} to finish"):
                self.thread.join(timeout)
        if self.thread.is_alive():
            self._warn(f"{self.name} did not finish within {timeout:g} s and was left behind")

    def _warn(self, message: str) -> None:
        if not self.warned:
            self.warned = True
            print(f"warning: {message}; the training goes on, and metrics.jsonl is complete", file=sys.stderr)

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
        except Exception as error:  # whatever it is, it is the library's
            self._warn(f"{self.name} failed ({type(error).__name__}: {error})")

    def _refill(self, backend: Backend) -> None:
        if refill := getattr(backend, "refill", None):
            refill(self._before())
        else:
            for step, values in self._before():
                backend.log(values, step)

    def _before(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, numbers) of all records before a resume; none at a start."""
        if not self.run.start_step:
            return
        history = self.run.history()
        if history.updated is None:
            raise OSError("; ".join(history.damage))
        for record in history.records:
            # The run has gone on meanwhile: its later records come through the inbox.
            if record["step"] <= self.run.start_step and (values := numbers(record)):
                yield record["step"], values
