"""The few collectives distcnn needs; the identity where no process group stands. Call each on all ranks or none."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def sum_ranks(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place; returns `tensor`."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def stack_ranks(tensor: Tensor) -> Tensor:
    """[…] on each rank → [world, …] on all, in the order of the ranks."""
    if not dist.is_initialized():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def from_main(value: T) -> T:
    """Rank 0's value (plain picklable data) on all ranks; the others' argument is ignored."""
    if not dist.is_initialized():
        return value
    box: list[T | None] = [value if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    received: T = box[0]  # type: ignore[assignment]
    return received
