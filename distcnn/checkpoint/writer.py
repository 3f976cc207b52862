"""Saves beside the training: a snapshot is taken, and a thread writes it while the next steps run."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from distcnn.checkpoint.file import Checkpoints
from distcnn.files import waiting
from distcnn.runs.records import Record, event

_ALIGNMENT = 64  # bytes, as PyTorch's own memory of the CPU is


class Snapshot:
    """A copy on the CPU of nested dicts, lists and tuples with tensors: `state`, whole when `wait` has returned.

    What lies on the CPU is copied at once. On CUDA the host only asks for the copies and goes on. They are made in a
    stream of their own, into pinned memory, which alone can be written beside the host's work. The training's stream
    waits for it: the next step must not change a weight that is being copied, so for some milliseconds the device
    stands still, but not the host.
    """

    def __init__(self, tree: Any):
        own = list(_on_cuda(tree))
        self.pairs = list(zip(pinned_like(own), own, strict=True))  # (copy, what it is of: it has to exist until then)
        self.copied: torch.cuda.Event | None = None
        copies = iter(self.pairs)
        self.state = _copied(tree, lambda: next(copies)[0])
        if self.pairs:
            self.device = own[0].device
            self._begin()

    def wait(self) -> None:
        """Until all of it is copied. May be called in another thread, once."""
        if self.copied is None:
            return
        torch.cuda.set_device(self.device)  # a thread begins with GPU 0, where its first call would make a context
        self.copied.synchronize()
        self.pairs.clear()

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


def pinned_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised tensors on the CPU, of the same shapes, dtypes and strides, in one piece of pinned memory.

    A piece for each would be as many calls into the driver, of which each may wait for the device. Yet each has a
    storage of its own, of its own size, over its part of the piece: of a view, torch.save would write all that it is a
    view of, and whoever saved one tensor of a loaded checkpoint would save the others with it.

    PyTorch keeps a piece that nobody holds any more for the next save, and does not know of copies that are still being
    made into parts of it: hold the tensors until they are.
    """
    if not tensors:
        return []
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    ends = list(accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
    piece = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True).numpy()  # lives as long as a part of it
    made = []
    for tensor, size, start in zip(tensors, sizes, [0, *ends[:-1]], strict=True):
        like = torch.empty_like(tensor, device="meta")  # dense, with the same strides where those are
        if size == 0:
            made.append(torch.empty_like(like, device="cpu"))
        else:
            flat = torch.frombuffer(piece[start : start + size], dtype=tensor.dtype)
            made.append(flat.as_strided(like.shape, like.stride()))
    return made


def _on_cuda(tree: Any) -> Iterator[Tensor]:
    """The CUDA tensors of nested dicts, lists and tuples, in the order of `_copied`."""
    if isinstance(tree, Tensor):
        if tree.is_cuda:
            yield tree.detach()
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _on_cuda(value)


def _copied(tree: Any, copy_of_cuda: Callable[[], Tensor]) -> Any:
    """The same tree, with copies of what lies on the CPU; `copy_of_cuda` gives those of the others, one by one."""
    if isinstance(tree, Tensor):
        return copy_of_cuda() if tree.is_cuda else tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value, copy_of_cuda) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copied(value, copy_of_cuda) for value in tree)
    return tree


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
