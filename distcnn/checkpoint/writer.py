"""Asynchronous checkpointing: a thread writes a snapshot while training continues."""

import threading
import time
from collections.abc import Callable
from typing import Any

from distcnn.checkpoint.file import Checkpoints
from distcnn.checkpoint.snapshot import Snapshot
from distcnn.files import waiting
from distcnn.runs.records import Record, event


class CheckpointWriter:
    """Writes rank 0's checkpoints; on the other ranks `checkpoints` is None, which makes it a no-op.

    At most one save is in flight, and the next one waits for it, so that memory holds one snapshot. A failed save (full
    disk, read-only folder) is passed to `report` as an event record, from the thread; training continues, and earlier
    checkpoints are unchanged. A save is due every `minutes`, None for never. `grace` is the time in seconds between a
    scheduler's signal and the end of the job, 0 if unknown; a grace period too short for a save is reported once.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        report: Callable[[Record], None],
        minutes: float | None = None,
        grace: float = 0,
    ):
        self.checkpoints, self.report, self.minutes, self.grace = checkpoints, report, minutes, grace
        self.thread: threading.Thread | None = None
        self.problem = ""  # of the last save; empty if it succeeded
        self.last_save = self.last_call = time.monotonic()
        self.step_s = 0.0  # the longest step, including its evaluation

    def due(self) -> bool:
        """Return whether `minutes` have passed, by rank 0's clock. Called after each step."""
        now = time.monotonic()
        self.step_s, self.last_call = max(self.step_s, now - self.last_call), now
        return self.checkpoints is not None and self.minutes is not None and now - self.last_save >= 60 * self.minutes

    def save(self, state: dict[str, Any], step: int, *, best: bool) -> None:
        """Start saving a state; the caller may modify its tensors afterwards."""
        if self.checkpoints is None:
            return
        self.wait()
        self.last_save = time.monotonic()
        self.thread = threading.Thread(target=self._write, args=(Snapshot(state), step, best), name="distcnn-saver")
        self.thread.start()

    def wait(self) -> str:
        """Wait for the save in flight; return what went wrong with the last one, "" if nothing."""
        if self.thread is not None:
            with waiting("the checkpoint to be written"):
                self.thread.join()
            self.thread = None
        return self.problem

    def _write(self, snapshot: Snapshot, step: int, best: bool) -> None:
        started = time.monotonic()
        try:
            assert self.checkpoints is not None
            snapshot.wait()
            self.checkpoints.save(snapshot.state, step, best=best)
            self.problem = ""
        except (OSError, RuntimeError) as error:  # RuntimeError: from PyTorch's writer
            newest = next((path.name for path in self.checkpoints.all()), "none") if self.checkpoints else "none"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.problem = f"could not be saved ({reason}); the newest checkpoint is {newest}"
            self.report(event("save_failed", step, f"step {step} {self.problem}; training continues"))
        needed = time.monotonic() - started + self.step_s
        if 0 < self.grace < needed:
            message = (
                f"a step and its save can take {needed:.1f} s, but the scheduler ends the job {self.grace:g} s after "
                f"its signal: submit it with --grace {2 * needed + 30:.0f} or more"
            )
            self.report(event("short_grace", step, message))
            self.grace = 0
