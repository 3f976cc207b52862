"""predictions.npz: the most probable classes of each image of the newest evaluation, and its most confident errors."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcnn.errors import InputError
from distcnn.files import open_regular, whole_file


@dataclass(frozen=True)
class Predictions:
    """Of N images, k classes each; M of the errors, the most confident first."""

    step: int
    labels: NDArray[np.int64]  # [N]
    best: NDArray[np.int64]  # [N, k] classes, the most probable first
    probabilities: NDArray[np.float32]  # [N, k]
    mistakes: NDArray[np.int64]  # [M] rows
    thumbnails: NDArray[np.uint8]  # [M, S, S, 3]
    files: tuple[str, ...]  # [M], or none where the images are not files


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write them, whole or not at all. Raises OSError."""
    with whole_file(path) as partial, partial.open("wb") as file:
        arrays: dict[str, Any] = vars(predictions) | {
            "best": predictions.best.astype(np.int32),  # half the size
            "files": np.array(predictions.files, dtype=np.str_),
        }
        np.savez(file, **arrays)


def load_predictions(path: Path) -> Predictions | None:
    """Read them back; None where there are none. Raises InputError where the file is damaged."""
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                # NumPy stores arrays as they are: compressed ones could be of any size once they are read.
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("it holds compressed arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                found = _checked({name: arrays[name] for name in arrays.files})
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged zip file makes NumPy raise
        raise InputError(f"{path}: damaged ({error}); the next evaluation writes it anew") from error
    return found


def _checked(found: dict[str, Any]) -> Predictions:
    """Raises ValueError where the parts do not fit together, and whatever missing ones raise."""
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
