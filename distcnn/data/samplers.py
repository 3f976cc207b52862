"""Which images each rank takes at each step, the same for the run as a whole at every world size.

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
    weight: float  # its part of the global batch in 0…1; 0 for a dummy batch, computed for company only
    last: bool  # the rank's last of this step: gradients are exchanged, then the optimizer steps


class MicroBatchSampler(DistributedSampler[int]):
    """A DistributedSampler that deals whole micro-batches in turn, pads nothing and can start in mid-epoch.

    The loop calls `set_epoch` itself. As a sampler it yields this rank's indices; `micro_batches` yields them
    with their bounds.
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
        """Choose the epoch, and the step within it to start at (earlier ones have been trained already)."""
        super().set_epoch(epoch)
        self.first_step = first_step

    def order(self) -> Tensor:
        """The epoch's order: [size] int64 indices, equal on all ranks; each (seed, epoch) draws its own.

        Seeds and epochs are hashed together: by their sum, as DistributedSampler has it, epoch 1 of seed 0 would be
        epoch 0 of seed 1. NumPy never changes what a RandomState draws, so a resume under a later release finds the
        same order (NEP 19).
        """
        if not self.shuffle:
            return torch.arange(self.size)
        bits = np.random.MT19937(np.random.SeedSequence((self.seed, self.epoch)))
        return torch.from_numpy(np.random.RandomState(bits).permutation(self.size).astype(np.int64, copy=False))

    def micro_batches(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches, step by step, at least one a step.

        The last global batch may hold fewer micro-batches than there are ranks. A rank without one gets a dummy
        batch of weight 0 (a copy of the first), because every rank takes part in the exchange of gradients.
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
    """This rank's (batch number, indices), nothing padded and nothing dropped; empty for a rank without images.

    The batches are cut the same way at every world size and dealt in turn, so that each is computed in the same
    shape and gives the same bits wherever it lands.
    """
    batches = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
    return list(enumerate(batches))[rank::world_size]
