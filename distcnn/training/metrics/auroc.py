"""Area under the receiver operating characteristic (AUROC)."""

import numpy as np
from numpy.typing import NDArray


class AUROC:
    """Area under the ROC curve of each class against all others, by its probability, averaged over the classes.

    Classes without images, or with all of them, are left out; NaN if none remains. It needs the probabilities of all
    images at once: [images, classes] float32 on every rank.
    """

    def compute(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
        """Compute it from the logits [images, classes] and targets [images] of all images."""
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        areas = [_area(column, targets == label) for label, column in enumerate(probabilities.T)]
        return float(np.mean([area for area in areas if area is not None] or [np.nan]))


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Return the probability that a positive scores above a negative, ties counted half (Mann and Whitney)."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives * negatives:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2  # of equal scores, from 1 on
    return float((mean_rank[place][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
