"""What every source gives: the images of one split as arrays."""

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
    files: Sequence[str] = ()  # [N] where each test image came from, if it was a file of its own

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: NDArray[np.int64]) -> "ImageSet":
        """A part of the images, in their own order."""
        rows = np.sort(rows)
        files = [self.files[i] for i in rows] if self.files else ()
        return ImageSet(self.images[rows], self.labels[rows], self.classes, files)


def problem_of(data: Any, image_size: int) -> str:
    """Say what of a source's answer is not as it should be; "" if all is."""
    if not isinstance(data, ImageSet):
        return f"should return a {ImageSet.__module__}.ImageSet, not {type(data).__name__}"
    images, labels = data.images, data.labels
    wanted = [len(labels), image_size, image_size, 3]
    if images.dtype != np.uint8 or list(images.shape) != wanted:
        return f"should give images of uint8 and shape {wanted}, not {images.dtype} and {list(images.shape)}"
    if labels.dtype != np.int64 or labels.ndim != 1:
        return f"should give one int64 label an image, not {labels.dtype} of shape {list(labels.shape)}"
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(data.classes):
        return f"gives labels {labels.min()} to {labels.max()} for {len(data.classes)} classes"
    return ""


def of_32_pixels(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    """Find another size than that of a source whose images are all of one size."""
    if config.data.image_size != 32:
        yield ("data.image_size", "data.source"), f"the images of {config.data.source} are 32 pixels wide"
