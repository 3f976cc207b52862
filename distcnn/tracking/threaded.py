"""Libraries that track runs, kept at arm's length: each in a thread of its own, and nobody waits for it for long."""

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from distcnn.files import waiting
from distcnn.runs.history import read_history
from distcnn.runs.records import Record

THREAD_NAME = "distcnn-tracker-"  # and the library's name
_BACKLOG = 50_000  # records kept for a library that is slow; beyond it they are dropped, with one warning


class Backend(Protocol):
    """One run in such a library. All of it is called in the thread; whatever it raises ends it, and nothing else."""

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """The first call: (step, numbers) of all steps before a resume, none at a start. Log what it does not hold yet.

        It may have been behind metrics.jsonl when its process was killed, by its own buffers or by the thread's queue.
        """

    def log(self, values: dict[str, float], step: int) -> None:
        """Take numbers; the steps never fall."""

    def finish(self, status: str, summary: Record, end: "End") -> None:
        """The last call: how it ended, its final numbers, and what there is to show."""


class End:
    """What a run leaves behind, read from its folder when it has ended."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def evaluation(self) -> Record | None:
        """The newest one."""
        evaluations = read_history(self.folder).evaluations
        return evaluations[-1] if evaluations else None

    def mistakes(self) -> list[tuple[Any, str, str, float, str]]:
        """(image [S, S, 3] uint8, true class, predicted class, its probability, file) of the surest ones."""
        run = read_history(self.folder)
        found, last = run.predictions(), run.evaluations[-1] if run.evaluations else None
        if found is None or last is None or found.step != last["step"]:
            return []
        names = list(last["per_class"])
        return [
            (
                found.thumbnails[place], names[found.labels[row]], names[found.best[row, 0]],
                float(found.probabilities[row, 0]), found.files[place] if found.files else f"image {row}",
            )
            for place, row in enumerate(found.mistakes.tolist())
        ]  # fmt: skip


def numbers(record: Record) -> dict[str, float]:
    """A train or eval record as named numbers, the same names in every library; of events there are none.

    No name is the beginning of another up to a slash: to some libraries that is a folder.
    """
    if record["kind"] == "train":
        values = {f"train/{key}": record.get(key) for key in ("loss", "lr", "images_per_s", "rank_spread")}
    elif record["kind"] == "eval":
        values = {f"test/{key}": record.get(key) for key in ("loss", "accuracy", "top5_accuracy")}
        values |= {f"test/class_accuracy/{name}": value for name, value in record.get("per_class", {}).items()}
    else:
        return {}
    return {key: value for key, value in (values | {"epoch": record.get("epoch")}).items() if value is not None}


class ThreadedTracker:
    """A Tracker of one library. If it raises or blocks, that costs a warning, and `timeout` seconds at the end.

    Continuing from `start_step`, the library is first given what it lacks of the steps until then, from the run's
    metrics.jsonl.
    """

    def __init__(self, name: str, folder: Path, begin: Callable[[], Backend], timeout: float, start_step: int = 0):
        self.name, self.folder, self.begin, self.timeout, self.start_step = name, folder, begin, timeout, start_step
        self.trouble = False
        self.inbox: queue.Queue[tuple[str, Record]] = queue.Queue(_BACKLOG)
        self.thread = threading.Thread(target=self._work, name=THREAD_NAME + name, daemon=True)
        self.thread.start()

    def log(self, record: Record) -> None:
        """Hand over one record without waiting."""
        try:
            self.inbox.put_nowait(("log", record))
        except queue.Full:
            self._warn(f"{self.name} is stuck; it has missed records from step {record.get('step')} on")

    def finish(self, status: str, summary: Record) -> None:
        """Let it finish, within the bounded time; shorter for a run that a scheduler is about to end."""
        timeout = min(self.timeout, 5.0) if status == "stopped" else self.timeout
        if self.thread.is_alive():
            try:
                self.inbox.put_nowait(("finish", {"status": status, **summary}))
            except queue.Full:
                return
            with waiting(f"{self.name} to finish"):
                self.thread.join(timeout)
        if self.thread.is_alive():
            self._warn(f"{self.name} did not finish within {timeout:g} s and was left behind")

    def _warn(self, message: str) -> None:
        if not self.trouble:
            self.trouble = True
            print(f"warning: {message}; the training goes on, and metrics.jsonl is complete", file=sys.stderr)

    def _work(self) -> None:
        try:
            backend = self.begin()
            backend.refill(self._before())
            while True:
                what, record = self.inbox.get()
                if what == "finish":
                    break
                if values := numbers(record):
                    backend.log(values, record["step"])
            backend.finish(record["status"], record, End(self.folder))
        except Exception as error:  # whatever it is, it is the library's
            self._warn(f"{self.name} failed ({type(error).__name__}: {error})")

    def _before(self) -> Iterator[tuple[int, dict[str, float]]]:
        if not self.start_step:
            return
        run = read_history(self.folder)
        if run.updated is None:
            raise OSError("; ".join(run.damage))
        for record in run.records:
            # The run has gone on meanwhile: its later records come through the inbox.
            if record["step"] <= self.start_step and (values := numbers(record)):
                yield record["step"], values
