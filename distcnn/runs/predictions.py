"""predictions.npz: the top-k classes of each image in the last evaluation, and its most confident errors."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcnn.errors import InputError
from distcnn.files import atomic_file, open_regular

_MISTAKES = 40  # maximum number
_THUMBNAIL = 96  # maximum side in pixels

PREDICTIONS = "predictions.npz"  # in the run's folder


@dataclass(frozen=True)
class Predictions:
    """Top-k predictions for N images, and the M most confident errors, most confident first."""

    step: int
    labels: NDArray[np.int64]  # [N]
    best: NDArray[np.int64]  # [N, k] classes, most probable first
    probabilities: NDArray[np.float32]  # [N, k]
    mistakes: NDArray[np.int64]  # [M] rows
    thumbnails: NDArray[np.uint8]  # [M, S, S, 3]
    files: tuple[str, ...]  # [M], or empty if the images are not files


def select_predictions(
    step: int,
    labels: NDArray[np.int64],
    best: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    images: NDArray[np.uint8],
    files: Sequence[str],
) -> Predictions:
    """Select what is kept of the evaluation after `step`: all predictions, and thumbnails of the most confident errors.

    `images` is [N, H, H, 3]; `files` are their N names, empty if they are not files.
    """
    wrong = np.flatnonzero(best[:, 0] != labels)
    mistakes = wrong[np.argsort(-probabilities[wrong, 0], kind="stable")[:_MISTAKES]]
    names = tuple(files[row] for row in mistakes) if files else ()
    return Predictions(step, labels, best, probabilities, mistakes, _thumbnails(images, mistakes), names)


def _thumbnails(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Make thumbnails [M, S, S, 3] of `rows`, S at most 96; one by one, as images may be large."""
    if len(rows) == 0 or images.shape[1] <= _THUMBNAIL:
        return np.asarray(images[rows])
    size = (_THUMBNAIL, _THUMBNAIL)
    small = (Image.fromarray(images[row]).resize(size, Image.Resampling.BICUBIC) for row in rows)
    return np.stack([np.asarray(one) for one in small])


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file atomically. Raises OSError."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        arrays: dict[str, Any] = vars(predictions) | {
            "best": predictions.best.astype(np.int32),  # half the size
            "files": np.array(predictions.files, dtype=np.str_),
        }
        np.savez(file, **arrays)


def load_predictions(path: Path) -> Predictions | None:
    """Read the file; None if it does not exist. Raises InputError if it is damaged."""
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                # distcnn writes uncompressed arrays; compressed ones could expand to any size.
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it holds compressed arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                found = _checked({name: arrays[name] for name in arrays.files})
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged zip file can make NumPy raise anything
        raise InputError(f"{path}: damaged ({error}); the next evaluation will replace it") from error
    return found


def _checked(found: dict[str, Any]) -> Predictions:
    """Validate the arrays. Raises KeyError for a missing one, ValueError for mismatched shapes."""
    labels, best, mistakes = (found[name].astype(np.int64) for name in ("labels", "best", "mistakes"))
    probabilities, thumbnails, files = found["probabilities"], found["thumbnails"], tuple(map(str, found["files"]))
    if best.shape != probabilities.shape or len(best) != len(labels) or best.ndim != 2:
        raise ValueError(f"it holds predictions of shape {best.shape} for {len(labels)} images")
    if mistakes.ndim != 1 or any(not 0 <= row < len(labels) for row in mistakes.tolist()):
        raise ValueError(f"it names images beyond the {len(labels)}")
    pictures = thumbnails.ndim == 4 and thumbnails.shape[3] == 3 and thumbnails.dtype == np.uint8
    if len(thumbnails) != len(mistakes) or len(files) not in (0, len(mistakes)) or not pictures:
        raise ValueError(f"it holds thumbnails of shape {thumbnails.shape} for {len(mistakes)} images")
    return Predictions(int(found["step"]), labels, best, probabilities, mistakes, thumbnails, files)
