"""Asynchronous checkpoints: a snapshot is taken, and a thread writes it while the next steps run."""

import threading
import time
from collections.abc import Callable
from typing import Any

from distcnn.checkpoint.file import Checkpoints
from distcnn.checkpoint.snapshot import Snapshot
from distcnn.files import waiting
from distcnn.runs.records import Record, event


class CheckpointWriter:
    """Writes rank 0's checkpoints; on the other ranks, `checkpoints` is None and nothing happens.

    One save is in flight at most: the next one waits for it, so that memory holds one snapshot. A save that fails
    (a full disk, a folder that has become read-only) is told to `report` as a record, from the thread, and the training
    goes on: all earlier checkpoints are as they were. `minutes` is the time after which a save is due, None for never.
    `grace` is the time from a scheduler's signal to the end, in seconds, 0 where it is not known: too short a one is
    reported once.
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
        self.problem = ""  # of the last save; empty when it is on the disk
        self.last = self.asked = time.monotonic()
        self.step_s = 0.0  # the longest step, with its evaluation

    def due(self) -> bool:
        """Whether `checkpoint.minutes` have passed; asked after each step. Rank 0's clock decides."""
        now = time.monotonic()
        self.step_s, self.asked = max(self.step_s, now - self.asked), now
        return self.checkpoints is not None and self.minutes is not None and now - self.last >= 60 * self.minutes

    def save(self, state: dict[str, Any], step: int, *, best: bool) -> None:
        """Begin to save a state; the caller may change its tensors afterwards."""
        if self.checkpoints is None:
            return
        self.wait()
        self.last = time.monotonic()
        self.thread = threading.Thread(target=self._write, args=(Snapshot(state), step, best), name="distcnn-saver")
        self.thread.start()

    def wait(self) -> str:
        """Until the save in flight has ended; what went wrong with it, or nothing."""
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
        except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's writer
            newest = next((path.name for path in self.checkpoints.all()), "none") if self.checkpoints else "none"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.problem = f"could not be saved ({reason}); the newest checkpoint is {newest}"
            self.report(event("save_failed", step, f"step {step} {self.problem}; the training goes on"))
        needed = time.monotonic() - started + self.step_s
        if 0 < self.grace < needed:
            message = (
                f"a step and its save can take {needed:.1f} s, but the scheduler ends the job {self.grace:g} s after "
                f"its signal: submit it with --grace {2 * needed + 30:.0f} or more"
            )
            self.report(event("short_grace", step, message))
            self.grace = 0
