"""Load the images of a run: one split of the source, with holdout and limits as configured."""

from collections.abc import Iterator

import numpy as np

from distcnn.config.schema import Config, DataConfig
from distcnn.data.sources import SOURCES
from distcnn.data.sources.image_set import ImageSet, Split, image_set_problem
from distcnn.errors import InputError
from distcnn.registry import Problem
from distcnn.text import listed


def problems(config: Config) -> Iterator[Problem]:
    """Check the source and its arguments, without reading any data."""
    return SOURCES.problems(config.data.source, config.data.args, config, "data.source", "data.args")


def load(config: DataConfig, split: Split) -> ImageSet:
    """Read one split of the configured source. Raises InputError if it is missing or unreadable.

    With `holdout`, a fixed random subset of the training images replaces the test images, which are not read. Not a
    collective; needs no process group. Processes that share a disk synchronise by file locks: one downloads or
    decodes, the others use the result.
    """
    data = SOURCES.build(config.source, config.args, config=config, split="train" if config.holdout else split)
    if problem := image_set_problem(data, config.image_size):
        raise InputError(f"data.source = {config.source}, data.image_size = {config.image_size}: {problem}")
    read: ImageSet = data
    if config.holdout:
        if config.holdout >= len(read):
            raise InputError(f"data.holdout = {config.holdout}: there are only {len(read)} training images")
        order = np.random.default_rng(1).permutation(len(read))
        read = read.rows(order[: config.holdout] if split == "test" else order[config.holdout :])
    limit = config.max_train if split == "train" else config.max_test
    if limit is None:
        return read
    if limit > len(read):
        raise InputError(f"data.max_{split} = {limit}: there are only {len(read)} {split} images")
    return read.rows(np.random.default_rng(0).permutation(len(read))[:limit])


def check_classes(train: ImageSet, test: ImageSet) -> None:
    """Raise InputError unless both splits have the same classes, at least two."""
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
    """Remap the labels to indices into the model's `classes`. Raises InputError for a class not among them."""
    if foreign := [name for name in data.classes if name not in classes]:
        raise InputError(f"data: the model does not know {listed(foreign, 20)}; it knows {listed(classes, 20)}")
    index = np.array([classes.index(name) for name in data.classes], np.int64)
    return ImageSet(data.images, index[data.labels], classes, data.files)
