"""Collectives: call each on all ranks or none. Without a process group each is the identity."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distcnn.errors import DistcnnError, InputError
from distcnn.files import waiting

T = TypeVar("T")


def sum_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place; return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast_main(tensors: Sequence[Tensor]) -> None:
    """Broadcast rank 0's tensors, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def stack_ranks(tensor: Tensor) -> Tensor:
    """Gather each rank's tensor, […] → [world size, …], by rank, on all ranks."""
    if not dist.is_initialized():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def gather_objects(own: T) -> list[T]:
    """Gather each rank's picklable object into a list, by rank, on all ranks."""
    if not dist.is_initialized():
        return [own]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, own)
    return box


def check_same(own: dict[str, Any]) -> None:
    """Raise DistcnnError on all ranks if any value differs between them: they were started differently."""
    with waiting("the other ranks to read their data and checkpoint"):
        first, *others = gather_objects(own)
    different = [
        f"{key} is {first[key]} on rank 0, {other[key]} on rank {rank}"
        for rank, other in enumerate(others, 1)
        for key in first
        if other[key] != first[key]
    ]
    if different:
        raise DistcnnError(
            f"the ranks are not in the same run: {'; '.join(different)}. All nodes should see the same config, run "
            "folder and images, and all ranks should get the launcher's variables"
        )


def on_main(decide: Callable[[], T], what: str) -> T:
    """Call `decide` on rank 0 alone; return its picklable result, or raise its InputError, on all ranks.

    `what` the others wait for is announced if it takes long, as in "rank 0 to make the folder".
    """
    if not dist.is_initialized():
        return decide()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = decide()
        except InputError as error:
            box[1] = error.problems
    with waiting(what if dist.get_rank() else "the other ranks"):
        dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise InputError(box[1])
    answer: T = box[0]
    return answer
