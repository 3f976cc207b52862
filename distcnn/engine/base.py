"""The base class of the engines: their interface, and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distcnn.distributed.collectives import broadcast_main
from distcnn.engine.gradient_sum import GradientSums
from distcnn.engine.master_weights import MasterWeights, Precision, autocast, bf16_copy


@dataclass(frozen=True)
class StepOptions:
    """How an engine computes a step."""

    precision: Precision = "fp32"
    clip_norm: float | None = None  # upper limit of the norm of the full gradient
    gradient_sum: Literal["fp64", "fp32"] = "fp64"
    micro_batches: int = 1  # of a global batch, over all ranks


class Engine(ABC):
    """Sums the gradients of a step's micro-batches, and steps the optimizer.

    `model` is the unwrapped module: evaluate it and save its state. `forward` is what training calls: `compute_model`,
    perhaps wrapped, which is `model` or, with bf16-master, its bfloat16 copy. `optimizer` is the unwrapped optimizer:
    set its learning rate. `enter` is called with the name of each phase within a backward.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        options: StepOptions = StepOptions(),
        enter: Callable[[str], None] = lambda _: None,
    ):
        self.model, self.optimizer, self.device, self.clip_norm = model, optimizer, device, options.clip_norm
        self.precision = options.precision
        if self.precision == "bf16-master":
            broadcast_main([p.data for p in model.parameters()])  # DDP broadcasts what it wraps: the copy
        self.compute_model = bf16_copy(model) if self.precision == "bf16-master" else model
        self.masters = MasterWeights(model, self.compute_model)
        self.sums = GradientSums(model, self.compute_model, options.gradient_sum, options.micro_batches, enter)
        self.forward = self.wrap()
        self.ddp = self.forward if isinstance(self.forward, DistributedDataParallel) else None
        if self.ddp is not None:
            self.ddp.register_comm_hook(None, self.sums.comm_hook)

    @abstractmethod
    def wrap(self) -> nn.Module:
        """Return `compute_model`, in DistributedDataParallel if there are other ranks."""

    @property
    @abstractmethod
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16; disabled in other precisions."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward."""
        return autocast(self.device, self.precision)

    def begin(self) -> None:
        """Begin a step: refresh bfloat16 weights from their masters."""
        self.masters.refresh()

    def accumulate(self, *, sync: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch's forward and backward; `sync` on the last one all-reduces."""
        return nullcontext() if sync or self.ddp is None else self.ddp.no_sync()

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        """Add one micro-batch's gradient to the step's; with `sync`, sum that over the ranks."""
        self.scaled_backward(loss)
        if not (sync and self.ddp is not None):  # otherwise the comm hook adds it
            self.sums.accumulate()

    def step(self) -> None:
        """Update the weights from the summed gradient, clipped at its true (unscaled) norm, and clear it."""
        self.sums.finalize()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.update()
        self.optimizer.zero_grad(set_to_none=True)

    def scaled_backward(self, loss: Tensor) -> None:
        """Run the backward of one loss, scaled in fp16."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Step the optimizer, unless a gradient overflowed in fp16."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizer and scaler, the same for every engine. The weights are in the model's."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Raises if a part is missing or does not match."""
        configured = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(own)  # this config's options, not the saved ones, as their change was allowed
        self.scaler.load_state_dict(state["scaler"])
