"""Averages of the weights over the steps: exponential moving average (EMA) and Lookahead.

Every rank updates its own after each optimizer step. The weights are identical on all ranks, hence the averages too,
without communication.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distcnn.config.schema import TrainConfig
from distcnn.errors import InputError


class Averages:
    """The configured averages of a model; create them after the model is on its device.

    EMA: average ← decay · average + (1 - decay) · weights, for BatchNorm's running statistics too. The average is what
    is evaluated and exported. The decay is ramped up as min(decay, (1 + step) / (10 + step)), to forget the random
    initial weights (the rule of TensorFlow's tf.train.ExponentialMovingAverage).

    Lookahead (Zhang et al. 2019, arXiv:1907.08610): every `train.lookahead` steps, slow ← slow + rate · (weights -
    slow), and the weights are reset to `slow`; BatchNorm's statistics are not. The final weights are the slow ones.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.decay, self.every, self.rate = config.ema, config.lookahead, config.lookahead_rate
        self.weights: list[Tensor] = [p.detach() for p in model.parameters() if p.requires_grad]
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        statistics = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self.averaged = self.weights + statistics
        self.ema = [t.clone() for t in self.averaged] if self.decay is not None else []
        self.slow = [t.clone() for t in self.weights] if self.every is not None else []

    @torch.no_grad()
    def after_step(self, step: int, *, last: bool) -> None:
        """Update the averages after optimizer step `step`, counted from 1."""
        if self.every is not None and (last or step % self.every == 0):
            torch._foreach_lerp_(self.slow, self.weights, self.rate)
            torch._foreach_copy_(self.weights, self.slow)
        if self.decay is not None:
            torch._foreach_lerp_(self.ema, self.averaged, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context manager: the model holds the EMA weights, if any, to evaluate or export them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the EMA weights, if any, into the model."""
        for own, other in zip(self.averaged if self.ema else [], self.ema, strict=True):
            own.copy_(other)

    @torch.no_grad()
    def _swap(self) -> None:
        for own, other in zip(self.averaged if self.ema else [], self.ema, strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return both averages; an unused one is an empty list."""
        return {"ema": self.ema, "slow": self.slow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved averages; one that was not saved keeps its value. Raises InputError if shapes differ."""
        for name, own in (("ema", self.ema), ("slow", self.slow)):
            saved = state.get(name, [])
            if not (own and saved):
                continue
            if [getattr(t, "shape", None) for t in saved] != [t.shape for t in own]:
                raise InputError(f"checkpoint: {name} holds {len(saved)} averages that do not fit the {len(own)} here")
            for target, source in zip(own, saved, strict=True):
                target.copy_(source)
