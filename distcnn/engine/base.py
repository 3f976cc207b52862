"""What a step needs of whatever wraps the model: the protocol of the engines, and the arithmetic they share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distcnn.distributed.collectives import broadcast_main

Precision = Literal["fp32", "bf16", "bf16-master", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "bf16-master": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context of a forward, in training and in evaluation."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def bf16_copy(model: nn.Module) -> nn.Module:
    """The same network with its matrices and filters in bfloat16; what is 1-d, and the buffers, it shares with `model`.

    Autocast would cast the weights again in every forward, and their gradients back in every backward.
    """
    shared = [*model.buffers(), *(p for p in model.parameters() if p.ndim <= 1)]
    twin: nn.Module = copy.deepcopy(model, {id(t): t for t in shared})
    for p in twin.parameters():
        if p.ndim > 1:
            p.data = p.data.bfloat16()
    return twin


class GradientSums:
    """A step's gradient is a sum over its micro-batches, on this rank and over the ranks.

    In float32 its last bits depend on the order of the sum, thus on the number of ranks, and a ReLU or a max-pool
    that tips over makes much of them within some tens of steps. With `kind="fp64"` the parts are summed in float64,
    whose rounding error is lost when the sum is rounded to float32: the same bits at every world size. It costs 8
    bytes a parameter, and twice the traffic. Two parts need neither: their sum is the same in either order.

    `computed` is what the gradients come from: `model` itself, or its bfloat16 copy, whose gradients are summed in
    float32 at least and given to `model`, the masters.
    """

    def __init__(self, model: nn.Module, computed: nn.Module, kind: Literal["fp64", "fp32"], micro_batches: int):
        exact = kind == "fp64" and micro_batches > 2
        dtype = torch.float64 if exact else torch.float32
        pairs = zip(computed.parameters(), model.parameters(), strict=True)
        self.masters = {p: master for p, master in pairs if p.requires_grad and (exact or p.dtype != master.dtype)}
        self.sums = {p: torch.zeros_like(p, dtype=dtype) for p in self.masters}
        self.present: set[nn.Parameter] = set()  # those that had a gradient in this step
        self.enter: Callable[[str], None] = lambda _: None  # is told when an exchange begins, and when it goes on alone

    def keep(self) -> None:
        """Move the gradients of a micro-batch into the sums."""
        for p, total in self.sums.items():
            if p.grad is not None:
                total += p.grad
                p.grad.zero_()
                self.present.add(p)

    @torch.no_grad()
    def exchange(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """DDP's communication hook: the sum of a bucket over the ranks (by default it would be the mean).

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

    def round(self) -> None:
        """The sums, rounded once, become the gradients; the next step's begin at zero."""
        for p in self.present:
            if p is not self.masters[p]:
                p.grad = None
            self.masters[p].grad = self.sums[p].to(self.masters[p].dtype, copy=True)
            self.sums[p].zero_()
        self.present.clear()


class Engine(ABC):
    """Carries each loss back to one optimizer step of the summed gradient.

    `model` is the unwrapped module: evaluate it and save its state. `forward` is what training calls: `computed`,
    which is `model` or, with bf16-master, its copy in bfloat16, in whatever wraps it.
    `optimizer` is the unwrapped optimizer: set its learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        *,
        gradient_sum: Literal["fp64", "fp32"] = "fp64",
        micro_batches: int = 1,
    ):
        self.model, self.optimizer, self.device, self.clip_norm = model, optimizer, device, clip_norm
        self.precision: Precision = precision
        if precision == "bf16-master":
            broadcast_main([p.data for p in model.parameters()])  # DDP does it for what it wraps: the copy
        self.computed = bf16_copy(model) if precision == "bf16-master" else model
        both = zip(self.computed.parameters(), model.parameters(), strict=True)
        self.copied = [(p.data, master.data) for p, master in both if p is not master]
        self.sums = GradientSums(model, self.computed, gradient_sum, micro_batches)
        self.forward = self.wrap()
        self.ddp = self.forward if isinstance(self.forward, DistributedDataParallel) else None
        if self.ddp is not None:
            self.ddp.register_comm_hook(None, self.sums.exchange)

    @abstractmethod
    def wrap(self) -> nn.Module:
        """`computed` as training calls it: in DistributedDataParallel where there are other ranks."""

    @property
    @abstractmethod
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16; a disabled one lets everything pass."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return autocast(self.device, self.precision)

    @torch.no_grad()
    def begin(self) -> None:
        """Begin a step: weights in bfloat16 are made from their masters."""
        if self.copied:
            copies, masters = zip(*self.copied, strict=True)
            torch._foreach_copy_(copies, masters)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's forward and backward: only the last one of a step exchanges gradients."""
        return nullcontext() if sync or self.ddp is None else self.ddp.no_sync()

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        """Add one micro-batch's part of the gradient; the parts' sum over all ranks is the step's gradient."""
        self.carry_back(loss)
        if not (sync and self.ddp is not None):  # the last part is added while it is exchanged
            self.sums.keep()

    def step(self) -> None:
        """Update the weights from the summed gradient, clipped at its true (unscaled) norm, and clear it."""
        self.sums.round()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.update()
        self.optimizer.zero_grad(set_to_none=True)

    def carry_back(self, loss: Tensor) -> None:
        """Run the backward of one (scaled) loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Run the optimizer; in fp16 not if a gradient has overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer and the scaler; the same for every engine. The weights are the model's own."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take all of it back; a missing or a foreign part raises."""
        configured = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(own)  # what is saved of them may be another config's, whose change has been allowed
        self.scaler.load_state_dict(state["scaler"])
