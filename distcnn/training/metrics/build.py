"""The metrics that a config asks for, ready to be called."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.config.schema import EvalConfig, named
from distcnn.errors import InputError, first_line
from distcnn.training.metrics import METRICS, key_of


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluation."""

    name: str  # in records
    function: Callable[[Tensor, Tensor], Tensor]  # logits [n, k] float32, targets [n] int64 → sums over the n images
    shape: torch.Size  # of the sums

    def result(self, sums: NDArray[np.float64], images: int) -> float:
        """The metric, of the sums over all images, flattened as [size]."""
        own = getattr(self.function, "result", None)
        return float(own(sums.reshape(self.shape))) if own else float(sums[0]) / images


def build_metrics(config: EvalConfig, classes: int, device: torch.device) -> tuple[Metric, ...]:
    """Build each, on the device where it has tensors of its own. Raises InputError where one is none."""
    return tuple(_build(item, classes, device) for item in config.metrics)


@torch.inference_mode()
def _build(item: object, classes: int, device: torch.device) -> Metric:
    name, args = named(item)  # type: ignore[arg-type]
    told = f"eval.metrics, {name}"
    try:
        function = METRICS.bind(name, args)
        tried = function(torch.zeros(2, classes), torch.tensor([0, 1]))
    except Exception as error:  # whatever a user's own raises
        raise InputError(f"{told}: {type(error).__name__}: {first_line(error)}") from error
    found = f"{list(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
    if not isinstance(tried, Tensor) or (tried.shape != () and not hasattr(function, "result")):
        raise InputError(f"{told}: should return its sum over the images, a tensor of shape [], not {found}")
    if isinstance(function, nn.Module):
        function = function.to(device)
    return Metric(key_of(name, args), function, tried.shape)
