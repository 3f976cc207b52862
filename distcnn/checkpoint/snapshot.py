"""A copy of a training's state at one moment, made while the device and the host go on."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, as PyTorch's own memory of the CPU is


class Snapshot:
    """A copy on the CPU of nested dicts, lists and tuples with tensors: `state`, complete once `wait` has returned.

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
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # the host sleeps while it waits
        self.copied.record(side)
        training.wait_stream(side)


def pinned_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised tensors on the CPU, of the same shapes, dtypes and strides, in one piece of pinned memory.

    A piece for each would be as many calls into the driver, of which each may wait for the device. Yet each has a
    storage of its own, of its own size, over its part of the piece: of a view, torch.save would write all that it is a
    view of, and to save one tensor of a loaded checkpoint would save the others with it.

    PyTorch keeps a piece that is no longer referenced for the next save, and does not know of copies that are still
    being made into parts of it: hold the tensors until they are.
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
