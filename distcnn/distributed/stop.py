"""The ranks agree to stop at a step boundary: at the same step, whichever of them got a signal."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.shutdown import watch_group
from distcnn.distributed.signals import StopSignal


class StopRequest:
    """Whether this run was asked to stop, by a signal to any rank: the loop asks `agreed` after each step."""

    def __init__(self, signal: StopSignal | None = None) -> None:
        """`signal` is that of this process; without one it hears none, and answers the other ranks."""
        self.signal = signal or StopSignal()
        self.group: Any = None  # of torch.distributed
        self.flags: Any = None  # [2] int64: the number, and whether to save, that are being agreed on
        self.work: Any = None

    def begin(self, timeout_s: float) -> None:
        """From now on signals wait for a step boundary. A collective: called on all ranks, in the process group."""
        if dist.is_initialized():
            # gloo even beside NCCL: the flag stays on the host, and no step waits for the GPU because of it.
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            watch_group(self.group)
        self.signal.defer()

    def agreed(self, save: bool = False) -> tuple[int, bool]:
        """The signal that any rank has got, 0 for none, and whether any wants to save; equal on all ranks.

        A collective, called after each step. The answer is that of the exchange begun at the call before, which had
        a whole step to travel.
        """
        if self.group is None:
            return self.signal.number, save
        number, saving = 0, 0
        if self.work is not None:
            self.work.wait()
            number, saving = self.flags.tolist()
        self.flags = torch.tensor([self.signal.number, int(save)])
        self.work = dist.all_reduce(self.flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return number, bool(saving)
