"""Averages of the weights over the steps: an exponential moving average (EMA), and Lookahead.

Each is called after every optimizer step, on all ranks alike: the weights are the same there, so are the averages, and
nothing is exchanged.
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
    """The configured averages of a model, which is on its device already.

    EMA: average ← decay · average + (1 - decay) · weights; BatchNorm's running statistics are averaged alike. It is
    what is evaluated and exported. The decay grows at first, as min(decay, (1 + step) / (10 + step)), so that the
    random start is forgotten (the rule of TensorFlow's tf.train.ExponentialMovingAverage).

    Lookahead (Zhang et al. 2019, arXiv:1907.08610): every so many steps, slow ← slow + rate · (weights - slow), and the
    weights go on from there; BatchNorm's statistics stay. After the last step the weights are the slow ones.
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
        """Count the weights after optimizer step number `step`, from 1 on."""
        if self.every is not None and (last or step % self.every == 0):
            torch._foreach_lerp_(self.slow, self.weights, self.rate)
            torch._foreach_copy_(self.weights, self.slow)
        if self.decay is not None:
            torch._foreach_lerp_(self.ema, self.averaged, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within, the model holds the EMA's weights, if there are any: to evaluate them, or to export them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def apply(self) -> None:
        """Put the EMA's weights, if there are any, into the model for good."""
        for own, other in zip(self.averaged if self.ema else [], self.ema, strict=True):
            own.copy_(other)

    @torch.no_grad()
    def _swap(self) -> None:
        for own, other in zip(self.averaged if self.ema else [], self.ema, strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Both averages, empty lists where they are not used."""
        return {"ema": self.ema, "slow": self.slow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; where none were saved, they begin with the weights. Raises InputError if they do not fit."""
        for name, mine in (("ema", self.ema), ("slow", self.slow)):
            theirs = state.get(name, [])
            if not (mine and theirs):
                continue
            if [getattr(t, "shape", None) for t in theirs] != [t.shape for t in mine]:
                raise InputError(
                    f"checkpoint: {name} holds {len(theirs)} averages that do not fit the {len(mine)} here"
                )
            for own, saved in zip(mine, theirs, strict=True):
                own.copy_(saved)
