"""The F1 score."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class F1:
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), per class, averaged over the classes.

    `macro` is the unweighted average; `weighted` weights classes by their number of images. Classes with
    neither images nor predictions are left out, as in scikit-learn's f1_score.
    """

    average: Literal["macro", "weighted"] = "macro"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return [3, k] int64, per class: true positives, images, predictions.

        Logits [n, k], targets [n] int64.
        """
        classes = torch.arange(logits.shape[1], device=logits.device)
        true, predicted = targets[:, None] == classes, logits.argmax(dim=1)[:, None] == classes
        return torch.stack([(true & predicted).sum(dim=0), true.sum(dim=0), predicted.sum(dim=0)])

    def result(self, sums: NDArray[np.float64]) -> float:
        """Compute the average from the sums over all images."""
        hits, true, predicted = sums[:, sums[1:].sum(axis=0) > 0]
        return float(np.average(2 * hits / (true + predicted), weights=true if self.average == "weighted" else None))
