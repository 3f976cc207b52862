"""predictions.npz: what the newest evaluation said of each image, and how its surest mistakes look."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcnn.data.sources import ImageSet
from distcnn.errors import BadInput
from distcnn.files import whole_file
from distcnn.training.evaluate import Evaluation

_MISTAKES = 40
_THUMBNAIL = 96  # pixels a side, at most


@dataclass(frozen=True)
class Predictions:
    """Of N images, k classes each; M of the mistakes, the surest first."""

    step: int
    labels: NDArray[np.int64]  # [N]
    best: NDArray[np.int64]  # [N, k] classes, best first
    probabilities: NDArray[np.float32]  # [N, k]
    mistakes: NDArray[np.int64]  # [M] rows
    thumbnails: NDArray[np.uint8]  # [M, S, S, 3]
    files: tuple[str, ...]  # [M], or none where the images are not files


def save_predictions(path: Path, evaluation: Evaluation, data: ImageSet, step: int) -> None:
    """Write them, whole or not at all. Raises OSError."""
    wrong = np.flatnonzero(evaluation.best[:, 0] != data.labels)
    mistakes = wrong[np.argsort(-evaluation.probabilities[wrong, 0], kind="stable")[:_MISTAKES]]
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(
            file, step=step, labels=data.labels, best=evaluation.best.astype(np.int32),
            probabilities=evaluation.probabilities, mistakes=mistakes, thumbnails=_thumbnails(data.images, mistakes),
            files=np.array([data.files[row] for row in mistakes] if data.files else [], dtype=np.str_),
        )  # fmt: skip


def load_predictions(path: Path) -> Predictions:
    """Read them back. Raises BadInput where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
        labels, best, mistakes = (found[name].astype(np.int64) for name in ("labels", "best", "mistakes"))
        files = tuple(map(str, found["files"]))
        predictions = Predictions(
            int(found["step"]), labels, best, found["probabilities"], mistakes, found["thumbnails"], files
        )
        if best.shape != predictions.probabilities.shape or len(best) != len(labels) or best.ndim != 2:
            raise ValueError(f"it holds predictions of shape {best.shape} for {len(labels)} images")
    except Exception as error:  # whatever a damaged zip file makes NumPy raise
        raise BadInput(f"{path}: damaged ({error}); the next evaluation writes it anew") from error
    return predictions


def _thumbnails(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[M, S, S, 3] of these rows, at most 96 pixels a side; one by one, as they may be large."""
    if len(rows) == 0 or images.shape[1] <= _THUMBNAIL:
        return np.asarray(images[rows])
    size = (_THUMBNAIL, _THUMBNAIL)
    small = (Image.fromarray(images[row]).resize(size, Image.Resampling.BICUBIC) for row in rows)
    return np.stack([np.asarray(one) for one in small])
