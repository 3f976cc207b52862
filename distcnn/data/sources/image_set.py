"""The return value of every data source: the images of one split as arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distcnn.config.schema import Config
from distcnn.registry import Problem

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Images [N, S, S, 3] uint8 (in memory or memory-mapped), labels [N] int64, and the classes' names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    files: Sequence[str] = ()  # [N] names of the test images' files, if they are files

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: NDArray[np.int64]) -> "ImageSet":
        """Select rows, in ascending order."""
        rows = np.sort(rows)
        files = [self.files[i] for i in rows] if self.files else ()
        return ImageSet(self.images[rows], self.labels[rows], self.classes, files)


def image_set_problem(data: Any, image_size: int) -> str:
    """Describe what is wrong with a source's return value; "" if it is valid."""
    if not isinstance(data, ImageSet):
        return f"should return a {ImageSet.__module__}.ImageSet, not {type(data).__name__}"
    images, labels = data.images, data.labels
    expected = [len(labels), image_size, image_size, 3]
    if images.dtype != np.uint8 or list(images.shape) != expected:
        return f"should give images of uint8 and shape {expected}, not {images.dtype} and {list(images.shape)}"
    if labels.dtype != np.int64 or labels.ndim != 1:
        return f"should give one int64 label per image, not {labels.dtype} of shape {list(labels.shape)}"
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(data.classes):
        return f"gives labels {labels.min()} to {labels.max()} for {len(data.classes)} classes"
    return ""


def check_32_pixels(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    """Check `data.image_size` for a source whose images are all 32 pixels wide."""
    if config.data.image_size != 32:
        yield ("data.image_size", "data.source"), f"the images of {config.data.source} are 32 pixels wide"
