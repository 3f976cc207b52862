"""What is kept of an evaluation for the report: its predictions, and thumbnails of its most confident errors."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcnn.data.sources.image_set import ImageSet
from distcnn.runs.predictions import Predictions, write_predictions
from distcnn.training.evaluate import Evaluation

_MISTAKES = 40
_THUMBNAIL = 96  # pixels a side, at most


def save_predictions(path: Path, evaluation: Evaluation, data: ImageSet, step: int) -> None:
    """Write the evaluation of `data` after `step`, whole or not at all. Raises OSError."""
    wrong = np.flatnonzero(evaluation.best[:, 0] != data.labels)
    mistakes = wrong[np.argsort(-evaluation.probabilities[wrong, 0], kind="stable")[:_MISTAKES]]
    files = tuple(data.files[row] for row in mistakes) if data.files else ()
    thumbnails = _thumbnails(data.images, mistakes)
    write_predictions(
        path,
        Predictions(step, data.labels, evaluation.best, evaluation.probabilities, mistakes, thumbnails, files),
    )


def _thumbnails(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[M, S, S, 3] of these rows, at most 96 pixels a side; one by one, as they may be large."""
    if len(rows) == 0 or images.shape[1] <= _THUMBNAIL:
        return np.asarray(images[rows])
    size = (_THUMBNAIL, _THUMBNAIL)
    small = (Image.fromarray(images[row]).resize(size, Image.Resampling.BICUBIC) for row in rows)
    return np.stack([np.asarray(one) for one in small])
