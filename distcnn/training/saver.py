"""Saves beside the training: a snapshot is taken, and a thread writes it while the next steps run."""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distcnn.parallel.waiting import waiting
from distcnn.records import Record, event
from distcnn.training.checkpoint import Checkpoints


class Snapshot:
    """A copy on the CPU of nested dicts, lists and tuples with tensors: `state`, whole when `wait` has returned.

    What lies on the CPU is copied at once. On CUDA the host only asks for the copies and goes on. They are made in a
    stream of their own, into pinned memory, which alone can be written beside the host's work. The training's stream
    waits for it: the next step must not change a weight that is being copied, so for some milliseconds the device
    stands still, but not the host.
    """

    def __init__(self, tree: Any):
        self.pairs: list[tuple[Tensor, Tensor]] = []  # (copy, what it is of, which has to exist until it is made)
        self.copied: torch.cuda.Event | None = None
        self.state = self._copy(tree)
        if self.pairs:
            self.device = self.pairs[0][1].device
            self._begin()

    def wait(self) -> None:
        """Until all of it is copied. May be called in another thread, once."""
        if self.copied is None:
            return
        torch.cuda.set_device(self.device)  # a thread begins with GPU 0, where its first call would make a context
        self.copied.synchronize()
        self.pairs.clear()

    def _copy(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            own = tree.detach()
            if not own.is_cuda:
                return own.to("cpu", copy=True)
            pinned = torch.empty_like(own, device="cpu", pin_memory=True)  # with its strides: one copy of memory
            self.pairs.append((pinned, own))
            return pinned
        if isinstance(tree, dict):
            return {key: self._copy(value) for key, value in tree.items()}
        return type(tree)(map(self._copy, tree)) if isinstance(tree, list | tuple) else tree

    def _begin(self) -> None:
        training = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(training)
        with torch.cuda.stream(side):
            for copy, own in self.pairs:
                copy.copy_(own, non_blocking=True)
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # whoever waits for it sleeps
        self.copied.record(side)
        training.wait_stream(side)


class Saver:
    """Rank 0's writer; on the other ranks, `checkpoints` is None and nothing happens. `report` takes a line of the log.

    One save is in flight at most: the next one waits for it, so that memory holds one snapshot. A save that fails
    (a full disk, a folder that has become read-only) is reported, from the thread, and the training goes on: all
    earlier checkpoints are as they were. `grace` is the time from a scheduler's signal to the end, in seconds, 0 where
    it is not known: too short a one is reported once.
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
        self.trouble = ""  # of the last save; empty when it is on the disk
        self.failed = 0
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
        copy = Snapshot(state)
        self.thread = threading.Thread(target=self._write, args=(copy, step, best), name="distcnn-saver")
        self.thread.start()

    def wait(self) -> str:
        """Until the save in flight has ended; what went wrong with it, or nothing."""
        if self.thread is not None:
            with waiting("the checkpoint to be written"):
                self.thread.join()
            self.thread = None
        return self.trouble

    def _write(self, copy: Snapshot, step: int, best: bool) -> None:
        started = time.monotonic()
        try:
            assert self.checkpoints is not None
            copy.wait()
            self.checkpoints.save(copy.state, step, best=best)
            self.trouble = ""
        except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's writer
            self.failed += 1
            newest = next((path.name for path in self.checkpoints.all()), "none") if self.checkpoints else "none"
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.trouble = f"could not be saved ({reason}); the newest checkpoint is {newest}"
            self.report(event("save_failed", step, f"step {step} {self.trouble}; the training goes on"))
        needed = time.monotonic() - started + self.step_s
        if 0 < self.grace < needed:
            message = (
                f"a step and its save can take {needed:.1f} s, but the scheduler ends the job {self.grace:g} s after "
                f"its signal: submit it with --grace {2 * needed + 30:.0f} or more"
            )
            self.report(event("short_grace", step, message))
            self.grace = 0
