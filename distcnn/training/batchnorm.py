"""BatchNorm's running statistics over the global batch, equal on all ranks after every step.

In training, BatchNorm normalises by the statistics of the micro-batch. By default the running statistics, which
evaluation uses, would on each rank follow only its own micro-batches, at a rate that depends on their number. Here they
are updated once per step, towards the weighted mean over all micro-batches j of the global batch:

    running ← (1 - momentum) · running + momentum · Σ_j weight_j · statistics_j

This is PyTorch's rule if a step is one micro-batch. Otherwise it makes the running statistics, and with them every
evaluation and checkpoint, independent of the number of ranks, at the cost of one small all-reduce per step. Likewise
`num_batches_tracked` counts steps, not the forwards of one rank, which include dummy batches.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcnn.distributed.collectives import sum_ranks
from distcnn.errors import InputError


class RunningStatistics:
    """Accumulates the statistics of the micro-batches of a step; a no-op if a step is one micro-batch."""

    def __init__(self, model: nn.Module, micro_batches_per_step: int):
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.layers = layers if micro_batches_per_step > 1 else []
        if any(layer.momentum is None for layer in self.layers):
            raise InputError(
                "model.name: a BatchNorm layer with momentum=None averages over all its micro-batches, which depends "
                "on the number of ranks; give it a momentum, such as 0.1"
            )
        self.momenta = [layer.momentum or 0.0 for layer in self.layers for _ in range(2)]  # for mean and variance
        self.current: list[Tensor] = [t for m in self.layers for t in (m.running_mean, m.running_var) if t is not None]
        self.before = [torch.empty_like(t) for t in self.current]
        self.sizes = [t.numel() for t in self.current]
        self.counts: list[Tensor] = [m.num_batches_tracked for m in self.layers if m.num_batches_tracked is not None]
        self.counts_before = [torch.empty_like(t) for t in self.counts]
        # Summed in float64, like the gradients, so that the result does not depend on the order.
        device = self.current[0].device if self.current else None
        self.total = torch.zeros(sum(self.sizes), dtype=torch.float64, device=device)
        for layer in self.layers:
            layer.momentum = 1.0  # a forward then stores the statistics of its micro-batch alone
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
        """Add the statistics of the last forward, whose micro-batch has `weight` in the global batch."""
        if self.layers:
            self.total += torch.cat(self.current).double() * weight

    @torch.no_grad()
    def end(self) -> None:
        """Finish the step. A collective: all ranks must call it."""
        if not self.layers:
            return
        mean = sum_ranks(self.total).to(self.current[0].dtype)
        torch._foreach_lerp_(self.before, torch.split(mean, self.sizes), self.momenta)
        torch._foreach_copy_(self.current, self.before)
        if self.counts:  # the minimum, as a layer frozen by the user's model has counted nothing
            torch._foreach_minimum_(self.counts, torch._foreach_add(self.counts_before, 1))
        self.begin()

    def close(self) -> None:
        """Restore the momentum of the layers."""
        for layer, momentum in zip(self.layers, self.momenta[::2], strict=True):
            layer.momentum = momentum
        self.layers = []
