"""The gradient of a step: the exact sum of its micro-batches' gradients over all ranks."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientSums:
    """Sums the gradients of a step's micro-batches, on this rank and over the ranks.

    In float32 the last bits of the sum depend on its order, thus on the number of ranks, and are amplified within tens
    of steps when a ReLU or max-pool near a tie flips. With `kind="fp64"` the sum is in float64, whose rounding error
    disappears when it is rounded to float32: the same bits at every world size. It costs 8 bytes per parameter and
    twice the traffic. Two micro-batches do not need it: their sum is the same in either order.

    `compute_model` yields the gradients: it is `model` or its bfloat16 copy, whose gradients are summed in at least
    float32 and given to the masters in `model`. `micro_batches` is the number in a step, over all ranks. `enter` is
    called with "gradient sync" when an all-reduce begins, and with "backward" when computing resumes.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_model: nn.Module,
        kind: Literal["fp64", "fp32"],
        micro_batches: int,
        enter: Callable[[str], None],
    ):
        exact = kind == "fp64" and micro_batches > 2
        dtype = torch.float64 if exact else torch.float32
        pairs = zip(compute_model.parameters(), model.parameters(), strict=True)
        self.masters = {p: master for p, master in pairs if p.requires_grad and (exact or p.dtype != master.dtype)}
        self.sums = {p: torch.zeros_like(p, dtype=dtype) for p in self.masters}
        self.present: set[nn.Parameter] = set()  # parameters with a gradient in this step
        self.enter = enter

    def accumulate(self) -> None:
        """Move a micro-batch's gradients into the sums."""
        for p, total in self.sums.items():
            if p.grad is not None:
                total += p.grad
                p.grad.zero_()
                self.present.add(p)

    @torch.no_grad()
    def comm_hook(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Sum a bucket over the ranks: DDP's communication hook (its default is the mean).

        The rest of the backward overlaps with it, except for the last bucket, for which the backward waits.
        """
        self.enter("gradient sync")
        done = self._start_all_reduce(bucket)
        if not bucket.is_last():
            self.enter("backward")
        return done

    def _start_all_reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        buffer: Tensor = bucket.buffer()
        parameters = bucket.parameters()
        if parameters[0] not in self.sums:  # a bucket has one dtype
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda _: buffer)
        # A bucket holds its gradients back to back, each with its parameter's strides, as do the sums: add in memory
        # order, which for channels_last weights is not the order of their shape.
        totals = [self.sums[p].as_strided((p.numel(),), (1,)) for p in parameters]
        flat = torch.cat(totals).add_(buffer)  # [elements of the bucket] float64 or float32
        self.present.update(parameters)

        def copy_back(_: object) -> Tensor:
            torch._foreach_copy_(totals, torch.split(flat, [p.numel() for p in parameters]))
            return buffer

        return dist.all_reduce(flat, async_op=True).get_future().then(copy_back)

    def finalize(self) -> None:
        """Round the sums once, store them as the gradients, and reset them to zero."""
        for p in self.present:
            if p is not self.masters[p]:
                p.grad = None
            self.masters[p].grad = self.sums[p].to(self.masters[p].dtype, copy=True)
            self.sums[p].zero_()
        self.present.clear()
