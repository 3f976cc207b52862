"""Calibration error."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distcnn.config.types import Int


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error: Σ over bins of |accuracy - mean confidence|, weighted by images.

    The confidence of an image is its largest probability; the bins divide 0…1 equally (Guo et al. 2017,
    arXiv:1706.04599, equation 3).
    """

    bins: Annotated[Int, Field(ge=1, description="number of bins of confidence")] = 15

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return [3, bins] float64, per bin: correct predictions, sum of confidences, images.

        Logits [n, k], targets [n] int64.
        """
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        edges = torch.arange(self.bins, device=logits.device)
        inside = (confidence * self.bins).long().clamp(max=self.bins - 1)[:, None] == edges  # [n, bins]
        each = torch.stack([(predicted == targets).double(), confidence, torch.ones_like(confidence)])  # [3, n]
        return each @ inside.double()

    def result(self, sums: NDArray[np.float64]) -> float:
        """Compute the error from the sums over all images."""
        hits, confidence, images = sums
        return float(np.abs(hits - confidence).sum() / images.sum())
