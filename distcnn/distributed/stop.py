"""Agreement of the ranks to stop at the same step boundary, whichever of them received a signal."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.shutdown import watch_group
from distcnn.distributed.signals import StopSignal


class StopRequest:
    """Whether a signal to any rank asks this run to stop. The loop calls `agreed` after each step."""

    def __init__(self, signal: StopSignal | None = None) -> None:
        """`signal` is this process's own; without one, only those of other ranks count."""
        self.signal = signal or StopSignal()
        self.group: Any = None  # of torch.distributed
        self.flags: Any = None  # [2] int64, being all-reduced: the signal's number, and whether to save
        self.work: Any = None

    def begin(self, timeout_s: float) -> None:
        """Defer signals to a step boundary from now on. A collective, inside the process group."""
        if dist.is_initialized():
            # gloo even with NCCL: the flags stay on the host, so that no step waits for the GPU because of them.
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            watch_group(self.group)
        self.signal.defer()

    def agreed(self, save: bool = False) -> tuple[int, bool]:
        """Return the signal that any rank has received, 0 for none, and whether any wants to save; equal on all ranks.

        A collective, called after each step. The result is of the all-reduce that the previous call started, which
        overlaps with a step.
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
