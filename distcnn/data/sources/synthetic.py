"""Synthetic images, for tests and benchmarks."""

from typing import Annotated

import numpy as np
from pydantic import Field

from distcnn.config.schema import DataConfig
from distcnn.config.types import Int
from distcnn.data.sources.image_set import ImageSet, Split


def synthetic(
    config: DataConfig,
    split: Split,
    *,
    train: Annotated[Int, Field(ge=1, description="number of training images")] = 2048,
    test: Annotated[Int, Field(ge=1, description="number of test images")] = 512,
    classes: Annotated[Int, Field(ge=2, le=10_000, description="number of classes")] = 10,
) -> ImageSet:
    """Generate one coloured pattern per class under heavy noise: learnable, deterministic, without any download."""
    n, size = train if split == "train" else test, config.image_size
    coarse = np.random.default_rng(1).integers(96, 160, (classes, 4, 4, 3))
    rows = np.arange(size) * 4 // size
    patterns = coarse[:, rows][:, :, rows]  # [classes, size, size, 3]
    rng = np.random.default_rng((2, split == "test"))
    labels = rng.integers(0, classes, n)
    images = np.empty((n, size, size, 3), np.uint8)
    for start in range(0, n, 1024):  # in chunks: the float64 noise takes eight times the memory of the images
        part = slice(start, min(start + 1024, n))
        noise = rng.normal(0, 48, (part.stop - part.start, size, size, 3))
        images[part] = np.clip(patterns[labels[part]] + noise, 0, 255)
    return ImageSet(images, labels, tuple(f"class{i}" for i in range(classes)))
