"""The gradient of a step: the exact sum of its micro-batches' gradients, on this rank and over the ranks."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientSums:
    """A step's gradient is a sum over its micro-batches, on this rank and over the ranks.

    In float32 its last bits depend on the order of the sum, thus on the number of ranks, and a ReLU or a max-pool
    that tips over makes much of them within some tens of steps. With `kind="fp64"` the parts are summed in float64,
    whose rounding error is lost when the sum is rounded to float32: the same bits at every world size. It costs 8
    bytes a parameter, and twice the traffic. Two parts need neither: their sum is the same in either order.

    `compute_model` is what the gradients come from: `model` itself, or its bfloat16 copy, whose gradients are summed in
    float32 at least and given to `model`, the masters. `micro_batches` are those of a step, over all ranks. `enter` is
    told when an exchange begins, and when the backward goes on alone.
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
        self.present: set[nn.Parameter] = set()  # those that had a gradient in this step
        self.enter = enter

    def accumulate(self) -> None:
        """Move the gradients of a micro-batch into the sums."""
        for p, total in self.sums.items():
            if p.grad is not None:
                total += p.grad
                p.grad.zero_()
                self.present.add(p)

    @torch.no_grad()
    def comm_hook(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Sum a bucket over the ranks: DDP's communication hook (by default it would be the mean).

        The rest of the backward hides it, but for the last bucket, after which the backward only waits.
        """
        self.enter("gradient sync")
        done = self._begin_exchange(bucket)
        if not bucket.is_last():
            self.enter("backward")
        return done

    def _begin_exchange(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        buffer: Tensor = bucket.buffer()
        parameters = bucket.parameters()
        if parameters[0] not in self.sums:  # a bucket is of one dtype
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda _: buffer)
        # A bucket holds its gradients one after another, each with its parameter's strides, as the sums have them:
        # channels_last weights lie in another order than their shape says, so it is memory that is added here.
        totals = [self.sums[p].as_strided((p.numel(),), (1,)) for p in parameters]
        whole = torch.cat(totals).add_(buffer)  # [elements of the bucket] float64 or float32

        self.present.update(parameters)

        def take(_: object) -> Tensor:
            torch._foreach_copy_(totals, torch.split(whole, [p.numel() for p in parameters]))
            return buffer

        return dist.all_reduce(whole, async_op=True).get_future().then(take)

    def finalize(self) -> None:
        """Round the sums, once: they become the gradients; the next step's begin at zero."""
        for p in self.present:
            if p is not self.masters[p]:
                p.grad = None
            self.masters[p].grad = self.sums[p].to(self.masters[p].dtype, copy=True)
            self.sums[p].zero_()
        self.present.clear()
