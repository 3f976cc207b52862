"""What a step needs of whatever wraps the model: the protocol of the engines, and the arithmetic they share."""

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
    """How an engine makes a step."""

    precision: Precision = "fp32"
    clip_norm: float | None = None  # largest norm of the whole gradient
    gradient_sum: Literal["fp64", "fp32"] = "fp64"
    micro_batches: int = 1  # of a global batch, over all ranks


class Engine(ABC):
    """Carries each loss back to one optimizer step of the summed gradient.

    `model` is the unwrapped module: evaluate it and save its state. `forward` is what training calls: `compute_model`,
    which is `model` or, with bf16-master, its copy in bfloat16, in whatever wraps it.
    `optimizer` is the unwrapped optimizer: set its learning rate. `enter` is told of phases within a backward.
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
            broadcast_main([p.data for p in model.parameters()])  # DDP does it for what it wraps: the copy
        self.compute_model = bf16_copy(model) if self.precision == "bf16-master" else model
        self.masters = MasterWeights(model, self.compute_model)
        self.sums = GradientSums(model, self.compute_model, options.gradient_sum, options.micro_batches, enter)
        self.forward = self.wrap()
        self.ddp = self.forward if isinstance(self.forward, DistributedDataParallel) else None
        if self.ddp is not None:
            self.ddp.register_comm_hook(None, self.sums.comm_hook)

    @abstractmethod
    def wrap(self) -> nn.Module:
        """`compute_model` as training calls it: in DistributedDataParallel where there are other ranks."""

    @property
    @abstractmethod
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16; a disabled one lets everything pass."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return autocast(self.device, self.precision)

    def begin(self) -> None:
        """Begin a step: weights in bfloat16 are made from their masters."""
        self.masters.refresh()

    def accumulate(self, *, sync: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's forward and backward: only the last one of a step exchanges gradients."""
        return nullcontext() if sync or self.ddp is None else self.ddp.no_sync()

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        """Add one micro-batch's part of the gradient; the parts' sum over all ranks is the step's gradient."""
        self.scaled_backward(loss)
        if not (sync and self.ddp is not None):  # the last part is added while it is exchanged
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
        """Run the backward of one loss, in fp16 of a scaled one."""
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
