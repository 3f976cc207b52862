"""Which images each rank processes at each step; over all ranks, the same at every world size.

An epoch's order is cut into global batches (one optimizer step each) and those into micro-batches. Micro-batch j
of a global batch goes to rank j mod world (block-cyclic), so that a micro-batch holds the same images wherever
it is computed, and BatchNorm, whose statistics are those of the micro-batch, sees the same ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward on one rank: positions [start, stop) of the epoch's order."""

    epoch: int
    step: int  # the optimizer step, counted from the start of the run
    start: int
    stop: int
    weight: float  # fraction of the global batch; 0 for a dummy batch, which only keeps the collectives matched
    last: bool  # of this step on this rank: gradients are all-reduced, then the optimizer steps


class MicroBatchSampler(DistributedSampler[int]):
    """A DistributedSampler that deals micro-batches in turn, pads nothing and can start in mid-epoch.

    The loop calls `set_epoch` itself. Iteration yields this rank's indices; `micro_batches` yields them with their
    bounds.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ):
        super().__init__(range(size), world_size, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.size, self.batch_size, self.micro_batch = size, batch_size, micro_batch
        self.steps = size // batch_size if drop_last else -(-size // batch_size)
        self.first_step = 0

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Select the epoch, and the step within it to start at; earlier steps are skipped."""
        super().set_epoch(epoch)
        self.first_step = first_step

    def order(self) -> Tensor:
        """Return the epoch's order, [size] int64 indices: equal on all ranks, different for each (seed, epoch).

        Seed and epoch are hashed together: with their sum, as in DistributedSampler, epoch 1 of seed 0 would be epoch 0
        of seed 1. NumPy guarantees the stream of a RandomState (NEP 19), so a later release resumes in the same order.
        """
        if not self.shuffle:
            return torch.arange(self.size)
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, self.epoch)))
        return torch.from_numpy(np.random.RandomState(bits).permutation(self.size).astype(np.int64, copy=False))

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches, step by step, at least one per step.

        The last global batch may hold fewer micro-batches than there are ranks. A rank without one gets a dummy
        batch of weight 0 (a copy of the first), because every rank must join the all-reduce of the gradients.
        """
        for step in range(self.first_step, self.steps):
            begin = step * self.batch_size
            end = min(begin + self.batch_size, self.size)
            starts = range(begin, end, self.micro_batch)[self.rank :: self.num_replicas]
            at = self.epoch, self.epoch * self.steps + step
            for start in starts:
                stop = min(start + self.micro_batch, end)
                yield MicroBatch(*at, start, stop, (stop - start) / (end - begin), last=start == starts[-1])
            if not starts:
                yield MicroBatch(*at, begin, min(begin + self.micro_batch, end), 0.0, last=True)

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        for micro in self.micro_batches():
            if micro.weight:
                yield from order[micro.start : micro.stop].tolist()

    def __len__(self) -> int:
        return sum(micro.stop - micro.start for micro in self.micro_batches() if micro.weight)


def evaluation_batches(size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, range]]:
    """Return this rank's (batch number, indices), without padding or dropping; empty for a rank without images.

    The batches are the same at every world size and dealt in turn, so each is computed in the same shape, and gives the
    same bits, on any rank.
    """
    batches = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
    return list(enumerate(batches))[rank::world_size]
