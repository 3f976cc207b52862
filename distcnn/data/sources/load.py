"""Where images come from. Every source gives the same thing: uint8 arrays, labels and class names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distcnn.config.schema import DataConfig
from distcnn.data.sources.cifar import load_cifar
from distcnn.data.sources.folder import load_folder, stratified_split
from distcnn.errors import InputError
from distcnn.registry import Problem
from distcnn.text import listed, missing

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Images [N, H, W, 3] uint8 (in memory or memory-mapped), labels [N] int64, and the classes' names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    files: Sequence[str] = ()  # [N] where each test image came from, if it was a file of its own

    def __len__(self) -> int:
        return len(self.labels)


def problems(config: DataConfig) -> Iterator[Problem]:
    """What can be said to be wrong before anything is read."""
    if config.source == "folder" and not Path(config.root).is_dir():
        yield (
            ("data.root",),
            "no such folder; it should hold train/<class>/ and test/<class>/, or <class>/ alone",
        )
    if config.source == "digits" and (needs := missing("digits", "sklearn")):
        yield ("data.source",), needs


def load(config: DataConfig, split: Split) -> ImageSet:
    """One split of the configured source. Raises InputError where it is missing or unreadable.

    With `holdout`, a fixed random part of the training images takes the place of the test images, which are not read.
    Uses no collective and may be called before a process group exists: processes that share a disk take turns
    by file locks, so that one of them downloads or decodes and the others find the result.
    """
    data = _read(config, "train" if config.holdout else split)
    if config.holdout:
        if config.holdout >= len(data):
            raise InputError(f"data.holdout = {config.holdout}: there are only {len(data)} training images")
        order = np.random.default_rng(1).permutation(len(data))
        rows = order[: config.holdout] if split == "test" else order[config.holdout :]
        data = _rows(data, rows)
    limit = config.max_train if split == "train" else config.max_test
    if limit is None:
        return data
    if limit > len(data):
        raise InputError(f"data.max_{split} = {limit}: there are only {len(data)} {split} images")
    return _rows(data, np.random.default_rng(0).permutation(len(data))[:limit])


def _read(config: DataConfig, split: Split) -> ImageSet:
    if config.source == "folder":
        images, labels, classes, files = load_folder(config, split)
        return ImageSet(images, labels, classes, files if split == "test" or config.holdout else ())
    if config.source == "digits":
        return _digits(split)
    if config.source == "synthetic":
        return _synthetic(config, split)
    return ImageSet(*load_cifar(config, split))


def check_classes(train: ImageSet, test: ImageSet) -> None:
    """Raise InputError where the splits do not hold the same classes, two at least."""
    problems = []
    if missing := [name for name in train.classes if name not in test.classes]:
        problems.append(f"data.root: class {listed(missing, 20)} is in the training images, but not in the test images")
    if missing := [name for name in test.classes if name not in train.classes]:
        problems.append(f"data.root: class {listed(missing, 20)} is in the test images, but not in the training images")
    if len(train.classes) < 2:
        problems.append(f"data: a classifier needs at least two classes; found only {listed(train.classes, 20)}")
    if problems:
        raise InputError(problems)


def with_classes(data: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """The same images with labels that index the model's `classes`; a class without images is fine here."""
    if foreign := [name for name in data.classes if name not in classes]:
        raise InputError(f"data: the model does not know {listed(foreign, 20)}; it knows {listed(classes, 20)}")
    index = np.array([classes.index(name) for name in data.classes], np.int64)
    return ImageSet(data.images, index[data.labels], classes, data.files)


def _rows(data: ImageSet, rows: NDArray[np.int64]) -> ImageSet:
    """A part of the images, in their own order."""
    rows = np.sort(rows)
    return ImageSet(
        data.images[rows], data.labels[rows], data.classes, [data.files[i] for i in rows] if data.files else ()
    )


def _digits(split: Split) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 of 17 greys, enlarged to 32×32 RGB; every fifth is for testing."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    chosen = stratified_split(labels, 0.2)[split]
    grey = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    big = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in grey]
    return ImageSet(np.stack(big)[..., None].repeat(3, axis=3), labels[chosen], tuple("0123456789"))


def _synthetic(config: DataConfig, split: Split) -> ImageSet:
    """A coloured pattern for each class under heavy noise: learnable, needs nothing, the same everywhere."""
    n = config.synthetic_train if split == "train" else config.synthetic_test
    classes, size = config.synthetic_classes, config.image_size
    coarse = np.random.default_rng(1).integers(96, 160, (classes, 4, 4, 3))
    rows = np.arange(size) * 4 // size
    patterns = coarse[:, rows][:, :, rows]  # [classes, size, size, 3]
    rng = np.random.default_rng((2, split == "test"))
    labels = rng.integers(0, classes, n)
    images = np.empty((n, size, size, 3), np.uint8)
    for start in range(0, n, 1024):  # a chunk at a time: the noise is eight times the images' size
        part = slice(start, min(start + 1024, n))
        noise = rng.normal(0, 48, (part.stop - part.start, size, size, 3))
        images[part] = np.clip(patterns[labels[part]] + noise, 0, 255)
    return ImageSet(images, labels, tuple(f"class{i}" for i in range(classes)))
