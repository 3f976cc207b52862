"""A snapshot of the training state, copied asynchronously while training continues."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, as in PyTorch's CPU allocator


class Snapshot:
    """Copies nested dicts, lists and tuples of tensors to the CPU; `state` is complete once `wait` has returned.

    CPU tensors are copied immediately. CUDA tensors are copied asynchronously, in a side stream, into pinned memory,
    without blocking the host. The training stream waits for the side stream, so that the next step does not modify a
    weight while it is copied: the device, but not the host, is idle for some milliseconds.
    """

    def __init__(self, tree: Any):
        own = list(_on_cuda(tree))
        self.pairs = list(zip(pinned_like(own), own, strict=True))  # (copy, original), which must outlive the copying
        self.copied: torch.cuda.Event | None = None
        copies = iter(self.pairs)
        self.state = _copied(tree, lambda: next(copies)[0])
        if self.pairs:
            self.device = own[0].device
            self._begin()

    def wait(self) -> None:
        """Block until everything is copied. Call it once; any thread may."""
        if self.copied is None:
            return
        torch.cuda.set_device(self.device)  # a new thread starts on GPU 0, where its first call would create a context
        self.copied.synchronize()
        self.pairs.clear()

    def _begin(self) -> None:
        training = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(training)
        with torch.cuda.stream(side):
            for copy, own in self.pairs:
                copy.copy_(own, non_blocking=True)
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # the waiting thread sleeps
        self.copied.record(side)
        training.wait_stream(side)


def pinned_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Allocate uninitialised CPU tensors of the same shapes, dtypes and strides in one block of pinned memory.

    Separate blocks would take one driver call each, which may wait for the device. Nevertheless each tensor has its own
    storage, of its own size: for a view, torch.save would write the entire block.

    PyTorch reuses the block once it is no longer referenced, even while copies into it are pending: keep the tensors
    until the copies are complete.
    """
    if not tensors:
        return []
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    ends = list(accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
    block = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True).numpy()  # kept alive by its slices
    made = []
    for tensor, size, start in zip(tensors, sizes, [0, *ends[:-1]], strict=True):
        like = torch.empty_like(tensor, device="meta")  # dense; keeps the strides of dense tensors
        if size == 0:
            made.append(torch.empty_like(like, device="cpu"))
        else:
            flat = torch.frombuffer(block[start : start + size], dtype=tensor.dtype)
            made.append(flat.as_strided(like.shape, like.stride()))
    return made


def _on_cuda(tree: Any) -> Iterator[Tensor]:
    """Yield the CUDA tensors of nested dicts, lists and tuples, in the order of `_copied`."""
    if isinstance(tree, Tensor):
        if tree.is_cuda:
            yield tree.detach()
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _on_cuda(value)


def _copied(tree: Any, copy_of_cuda: Callable[[], Tensor]) -> Any:
    """Rebuild the tree with CPU tensors copied, and CUDA tensors replaced by successive results of `copy_of_cuda`."""
    if isinstance(tree, Tensor):
        return copy_of_cuda() if tree.is_cuda else tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value, copy_of_cuda) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copied(value, copy_of_cuda) for value in tree)
    return tree
