"""How one step runs on all ranks: native DistributedDataParallel, autocast and, for fp16, a gradient scaler."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


Precision = Literal["fp32", "bf16", "fp16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context of a forward, in training and in evaluation."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class DDPEngine:
    """Wraps a model, and carries each loss back to one optimizer step of the summed gradient.

    `model` is the module itself: evaluate it and save its state. `forward` is what training calls.

    A step's gradient is a sum over its micro-batches, on this rank and over the ranks. In float32 its last bits
    depend on the order of the sum, thus on the number of ranks, and a ReLU or a max-pool that tips over makes much
    of them within some tens of steps. With `gradient_sum="fp64"` the parts are summed in float64, whose rounding
    error is lost when the sum is rounded to float32: the same bits at every world size. It costs 8 bytes a
    parameter, and twice the traffic. Two parts need neither: their sum is the same in either order.
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
        # With bf16 and fp32 the scaler is disabled: every call passes straight through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.trained = [p for p in model.parameters() if p.requires_grad]
        exact = gradient_sum == "fp64" and micro_batches > 2
        self.sums = {p: torch.zeros_like(p, dtype=torch.float64) for p in self.trained} if exact else {}
        self.forward: nn.Module = model
        self.ddp: DistributedDataParallel | None = None
        if dist.is_initialized():
            # Buffers are not broadcast before every forward, as DDP does by default: BatchNorm's statistics are
            # averaged over the ranks after each step (training/batchnorm.py), and nothing else writes buffers.
            # PyTorch 2.14 renamed the option.
            names = inspect.signature(DistributedDataParallel).parameters
            broadcast = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            options: dict[str, Any] = {broadcast: False}
            self.forward = self.ddp = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **options,
            )
            self.ddp.register_comm_hook(None, self._sum_bucket)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return autocast(self.device, self.precision)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's forward and backward: only the last one of a step exchanges gradients."""
        return nullcontext() if sync or self.ddp is None else self.ddp.no_sync()

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        """Add one micro-batch's part of the gradient; the parts' sum over all ranks is the step's gradient."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.sums and not (sync and self.ddp is not None):  # the last part is added while it is exchanged
            for p in self.trained:
                if p.grad is not None:
                    self.sums[p] += p.grad
                    p.grad.zero_()

    @torch.no_grad()
    def _sum_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """DDP's communication hook: the sum of a bucket over the ranks (by default it would be the mean)."""
        buffer = bucket.buffer()
        if not self.sums:
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda _: buffer)
        # A bucket holds its gradients one after another, each with its parameter's strides, as the sums have them:
        # channels_last weights lie in another order than their shape says, so it is memory that is added here.
        whole = buffer.double()
        parameters = bucket.parameters()
        for part, p in zip(torch.split(whole, [p.numel() for p in parameters]), parameters, strict=True):
            part += self.sums[p].as_strided((p.numel(),), (1,))
        return dist.all_reduce(whole, async_op=True).get_future().then(lambda _: buffer.copy_(whole))

    def step(self) -> None:
        """Update the weights from the summed gradient, clipped at its true (unscaled) norm, and clear it."""
        if self.ddp is None:
            for p, total in self.sums.items():
                p.grad = total.to(p.dtype)
        for total in self.sums.values():
            total.zero_()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Model (no `module.` or `_orig_mod.` in its keys), optimizer and scaler."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take all of it back; a missing or a foreign part raises."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
