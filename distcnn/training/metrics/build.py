"""Build the configured metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.config.schema import EvalConfig
from distcnn.config.types import named
from distcnn.errors import InputError, first_line
from distcnn.training.metrics import METRICS, key_of


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluation."""

    name: str  # in records
    function: Callable[[Tensor, Tensor], Tensor]  # logits [n, k] float32, targets [n] int64 → sums over the n images
    shape: torch.Size  # of the sums

    def result(self, sums: NDArray[np.float64], images: int) -> float:
        """Compute the metric from the sums over all images, flattened to [size]."""
        own = getattr(self.function, "result", None)
        return float(own(sums.reshape(self.shape))) if own else float(sums[0]) / images


def build_metrics(config: EvalConfig, classes: int, device: torch.device) -> tuple[Metric, ...]:
    """Build each metric, moving modules to the device. Raises InputError if a trial call fails."""
    return tuple(_build(item, classes, device) for item in config.metrics)


@torch.inference_mode()
def _build(item: object, classes: int, device: torch.device) -> Metric:
    name, args = named(item)  # type: ignore[arg-type]
    setting = f"eval.metrics, {name}"
    try:
        function = METRICS.bind(name, args)
        sums = function(torch.zeros(2, classes), torch.tensor([0, 1]))
    except Exception as error:  # user code can raise anything
        raise InputError(f"{setting}: {type(error).__name__}: {first_line(error)}") from error
    found = f"{list(sums.shape)}" if isinstance(sums, Tensor) else type(sums).__name__
    if not isinstance(sums, Tensor) or (sums.shape != () and not hasattr(function, "result")):
        raise InputError(f"{setting}: should return its sum over the images, a tensor of shape [], not {found}")
    if isinstance(function, nn.Module):
        function = function.to(device).eval()
    return Metric(key_of(name, args), function, sums.shape)
