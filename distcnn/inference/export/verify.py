"""Compare an exported model with PyTorch's result on real images, at several batch sizes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcnn.checkpoint.weights import is_safetensors
from distcnn.data.sources import load as sources
from distcnn.errors import DistcnnError, InputError
from distcnn.inference.export.base import Exported
from distcnn.inference.images import find_images
from distcnn.inference.model import Trained
from distcnn.inference.predictor import Predictor

TOLERANCE = 1e-4  # between two probabilities
_CUTS = (1, 7)  # where the first two, small batches end: a graph with a fixed batch size fails
_BATCH = 250  # images of the further batches


def given_images(trained: Trained, paths: Sequence[str], count: int) -> NDArray[np.uint8]:
    """Return at most `count` of the user's images, [n, S, S, 3]. Raises InputError."""
    problems: list[str] = []
    files = find_images(paths, problems)
    if problems:
        raise InputError(problems)
    predictor = Predictor(trained)
    try:
        return np.stack([predictor.decode(file) for file in files[:count]])
    except Exception as error:  # Pillow raises many kinds on malformed files
        raise InputError(f"--images: not readable as images: {error}") from error


def run_images(trained: Trained, count: int) -> tuple[NDArray[np.uint8], str]:
    """Return at most `count` of the run's test images [n, S, S, 3], and their name. Raises InputError."""
    config = trained.config.data
    problems = [f"{', '.join(keys)}: {message}" for keys, message in sources.problems(trained.config)]
    if is_safetensors(trained.path):
        problems = [f"{trained.path}: does not record which images it was tested on"]
    if problems:
        raise InputError([*problems, "give real images to verify the export on: --images PATH…"])
    data = sources.load(config, "test")
    # Evenly spaced, because a folder's images are sorted by class.
    rows = np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.int64)
    return np.ascontiguousarray(data.images[rows]), f"{config.source}, {'hold-out' if config.holdout else 'test'}"


def probabilities(model: Exported, images: NDArray[np.uint8]) -> Tensor:
    """Return the probabilities of all images, [n, classes], computed in batches of several sizes."""
    cuts = [*_CUTS, *range(_BATCH, len(images), _BATCH)]
    parts = np.split(images, [cut for cut in cuts if cut < len(images)])
    with torch.inference_mode():
        return torch.cat([model(part) for part in parts if len(part)])


def check_difference(found: Tensor, expected: Tensor, name: str) -> float:
    """Return the largest absolute difference. Raises DistcnnError if it exceeds TOLERANCE or is NaN."""
    largest = float((found - expected).abs().max())
    if not largest <= TOLERANCE:
        raise DistcnnError(
            f"{name}: differs from PyTorch's own probabilities by {largest:.2g}, more than {TOLERANCE:g}; not kept"
        )
    return largest
