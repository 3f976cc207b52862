"""Precision, recall, F1 and balanced accuracy, from counts per class."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

Counts = NDArray[np.float64]  # [k], one per class


@dataclass(frozen=True)
class PerClass(ABC):
    """A ratio per class, averaged over the classes.

    `macro` is the unweighted average; `weighted` weights classes by their number of images. As in scikit-learn, classes
    with neither images nor predictions are left out, and a ratio of 0 to 0 is 0.
    """

    average: Annotated[Literal["macro", "weighted"], Field(description="over classes, or weighted by images")] = "macro"

    @abstractmethod
    def ratio(self, hits: Counts, images: Counts, predictions: Counts) -> tuple[Counts, Counts]:
        """Return numerator and denominator."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return [3, k] int64, per class: true positives, images, predictions.

        Logits [n, k], targets [n] int64.
        """
        classes = torch.arange(logits.shape[1], device=logits.device)
        true, predicted = targets[:, None] == classes, logits.argmax(dim=1)[:, None] == classes
        return torch.stack([(true & predicted).sum(dim=0), true.sum(dim=0), predicted.sum(dim=0)])

    def result(self, sums: NDArray[np.float64]) -> float:
        """Compute the average from the sums over all images."""
        counts = sums[:, sums[1:].sum(axis=0) > 0]
        above, below = self.ratio(*counts)
        ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return float(np.average(ratios, weights=counts[1] if self.average == "weighted" else None))


@dataclass(frozen=True)
class Precision(PerClass):
    """Precision, TP / (TP + FP), per class, averaged."""

    def ratio(self, hits: Counts, images: Counts, predictions: Counts) -> tuple[Counts, Counts]:  # noqa: ARG002
        """Return numerator and denominator."""
        return hits, predictions


@dataclass(frozen=True)
class Recall(PerClass):
    """Recall, TP / (TP + FN), per class, averaged."""

    def ratio(self, hits: Counts, images: Counts, predictions: Counts) -> tuple[Counts, Counts]:  # noqa: ARG002
        """Return numerator and denominator."""
        return hits, images


@dataclass(frozen=True)
class F1(PerClass):
    """F1 score, 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall, per class, averaged."""

    def ratio(self, hits: Counts, images: Counts, predictions: Counts) -> tuple[Counts, Counts]:
        """Return numerator and denominator."""
        return 2 * hits, images + predictions
