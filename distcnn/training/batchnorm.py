"""BatchNorm's running statistics over a whole global batch, equal on all ranks after every step.

In training, BatchNorm normalises by its micro-batch's own statistics. The running ones, used in evaluation, would
on each rank follow only the micro-batches that it saw, at a pace that depends on how many those were. Here one
step moves them once, towards the mean over all micro-batches of the global batch:

    running ← (1 - momentum) · running + momentum · Σ_j share_j · statistics_j

That is PyTorch's own rule where a step is one micro-batch; otherwise it makes them, and with them every
evaluation and checkpoint, independent of the number of ranks. It costs one small all-reduce a step. Likewise
`num_batches_tracked`, which counts the forwards of one rank, dummy micro-batches too, counts the steps.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcnn.distributed.collectives import sum_ranks
from distcnn.errors import InputError


class RunningStatistics:
    """Collects the statistics of a step's micro-batches. Does nothing where a step is one micro-batch."""

    def __init__(self, model: nn.Module, micro_batches_per_step: int):
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.layers = layers if micro_batches_per_step > 1 else []
        if any(layer.momentum is None for layer in self.layers):
            raise InputError(
                "model.name: a BatchNorm layer with momentum=None averages over all micro-batches it ever saw, which "
                "depends on the number of ranks; give it a momentum, such as 0.1"
            )
        self.momenta = [layer.momentum or 0.0 for layer in self.layers for _ in range(2)]  # of mean and variance
        self.current: list[Tensor] = [t for m in self.layers for t in (m.running_mean, m.running_var) if t is not None]
        self.before = [torch.empty_like(t) for t in self.current]
        self.sizes = [t.numel() for t in self.current]
        self.counts: list[Tensor] = [m.num_batches_tracked for m in self.layers if m.num_batches_tracked is not None]
        self.counts_before = [torch.empty_like(t) for t in self.counts]
        # Summed in float64, as the gradients are: the same bits in whatever order.
        device = self.current[0].device if self.current else None
        self.total = torch.zeros(sum(self.sizes), dtype=torch.float64, device=device)
        for layer in self.layers:
            layer.momentum = 1.0  # a forward now leaves the bare statistics of its micro-batch
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Start a step."""
        if self.layers:
            torch._foreach_copy_(self.before, self.current)
            self.total.zero_()
        if self.counts:
            torch._foreach_copy_(self.counts_before, self.counts)

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """Count the micro-batch just computed, `weight` being its part of the global batch."""
        if self.layers:
            self.total += torch.cat(self.current).double() * weight

    @torch.no_grad()
    def end(self) -> None:
        """Finish the step: a collective, called on all ranks."""
        if not self.layers:
            return
        mean = sum_ranks(self.total).to(self.current[0].dtype)
        torch._foreach_lerp_(self.before, torch.split(mean, self.sizes), self.momenta)
        torch._foreach_copy_(self.current, self.before)
        if self.counts:  # of a layer that is frozen, as a user's model may keep it, nothing was counted
            torch._foreach_minimum_(self.counts, torch._foreach_add(self.counts_before, 1))
        self.begin()

    def close(self) -> None:
        """Give the layers their own momentum back."""
        for layer, momentum in zip(self.layers, self.momenta[::2], strict=True):
            layer.momentum = momentum
        self.layers = []
