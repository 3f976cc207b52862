"""How one step runs on all ranks: native DistributedDataParallel, autocast and, for fp16, a gradient scaler."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
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
    """Wraps a model, and carries each loss back to one optimizer step of the averaged gradient.

    `model` is the module itself: evaluate it and save its state. `forward` is what training calls.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
    ):
        self.model, self.optimizer, self.device, self.clip_norm = model, optimizer, device, clip_norm
        self.precision: Precision = precision
        # With bf16 and fp32 the scaler is disabled: every call passes straight through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.forward: nn.Module = model
        self.ddp: DistributedDataParallel | None = None
        if torch.distributed.is_initialized():
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

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return autocast(self.device, self.precision)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's forward and backward: only the last one of a step exchanges gradients."""
        return nullcontext() if sync or self.ddp is None else self.ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add this rank's part of the gradient. The parts' mean over the ranks is the step's gradient."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Update the weights from the averaged gradient, clipped at its true (unscaled) norm, and clear it."""
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
