"""Build the configured metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.config.schema import EvalConfig
from distcnn.config.types import named
from distcnn.errors import InputError, first_line
from distcnn.training.metrics import METRICS, key_of

Outputs = tuple[NDArray[np.float32], NDArray[np.int64]]  # logits [images, k] and targets [images] of all images


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluation."""

    name: str  # in records
    function: Any  # see METRICS
    shape: torch.Size  # of its sums; [0] if it needs the outputs of all images instead

    @property
    def needs_outputs(self) -> bool:
        """Whether it is computed from the outputs of all images at once."""
        return hasattr(self.function, "compute")

    def sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return its sums over n images, [size] float64, of logits [n, k] float32 and targets [n] int64."""
        if self.needs_outputs:
            return logits.new_zeros(0, dtype=torch.float64)
        found: Tensor = self.function(logits, targets)
        return found.double().flatten()

    def result(self, sums: NDArray[np.float64], images: int, outputs: Outputs | None) -> float:
        """Compute the metric from the sums over all images, [size], or from their outputs."""
        if self.needs_outputs:
            assert outputs is not None
            return float(self.function.compute(*outputs))
        own = getattr(self.function, "result", None)
        return float(own(sums.reshape(self.shape))) if own else float(sums[0]) / images


def build_metrics(config: EvalConfig, classes: int, device: torch.device) -> tuple[Metric, ...]:
    """Build each metric and try it on the device. Modules are moved there. Raises InputError if a trial fails."""
    return tuple(_build(*named(item), classes, device) for item in config.metrics)


@torch.inference_mode()
def _build(name: str, args: Mapping[str, Any], classes: int, device: torch.device) -> Metric:
    setting = f"eval.metrics, {name}"
    logits, targets = torch.zeros(3, classes, device=device), torch.tensor([0, 1, 0], device=device)
    try:
        function: Any = METRICS.bind(name, args)
        if isinstance(function, nn.Module):
            function = function.to(device).eval()
        if hasattr(function, "compute"):
            float(function.compute(logits.cpu().numpy(), targets.cpu().numpy()))
            return Metric(key_of(name, args), function, torch.Size([0]))
        two, sums = function(logits[:2], targets[:2]), function(logits, targets)
        shape = _shape(sums)
        if shape is not None and shape == _shape(two) and hasattr(function, "result"):
            float(function.result(sums.double().cpu().numpy()))
    except Exception as error:  # user code can raise anything
        raise InputError(f"{setting}: {type(error).__name__}: {first_line(error)}") from error
    scalar = not hasattr(function, "result")
    if shape is None or shape != _shape(two) or (scalar and shape):
        wanted = "a tensor of shape []" if scalar else "a tensor of the same shape for any number of them"
        found = type(sums).__name__ if shape is None else f"{list(shape)} for 3"
        raise InputError(f"{setting}: should return its sum over the images, {wanted}, not {found}")
    return Metric(key_of(name, args), function, shape)


def _shape(sums: object) -> torch.Size | None:
    return sums.shape if isinstance(sums, Tensor) else None
