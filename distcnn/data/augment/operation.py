"""What an operation of augmentation is: what it draws for each image, and what it does with it at its stage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distcnn.data import keyed

Drawn = Mapping[str, NDArray[Any]]  # by a name of the operation's own, [n] numbers each
Draws = Mapping[str, Tensor]  # the same on the images' device: int64, or float64 where floats were drawn


@dataclass(frozen=True)
class Places:
    """The [n] images that an operation draws for, and random numbers that depend on nothing but their places.

    They depend on the run's seed, the epoch, the position in the epoch's order and the operation: never on the rank,
    the worker, the batch or what was drawn before.
    """

    seed: int
    epoch: int
    positions: NDArray[np.int64]  # [n], in the epoch's order
    indices: NDArray[np.int64]  # [n], in the data set
    height: int  # of the images, in pixels
    width: int
    owner: tuple[int, ...] = ()  # what the numbers of this operation are keyed by, besides seed and epoch
    first_stream: int = 0

    def keyed(self, part: int) -> int:
        """Return the key of this operation for (seed, part); with the epoch as `part` it is `key`."""
        return keyed.keyed(self.seed, part, *self.owner)

    @property
    def key(self) -> int:
        """The key of this operation in this epoch."""
        return self.keyed(self.epoch)

    def uniform(self, stream: int) -> NDArray[np.float64]:
        """Return [n] numbers in [0, 1); each of an operation's streams, 0…7, is independent of the others."""
        return keyed.uniform(self.key, self.positions, self.first_stream + stream)

    def beta(self, alpha: float) -> NDArray[np.float64]:
        """Return [n] numbers from Beta(alpha, alpha), independent of the streams of `uniform`."""
        return keyed.beta(alpha, self.key, self.positions)


class Operation(ABC):
    """What the two kinds of operation have in common.

    A class of your own is used by its name: `data.augment: [flip, {my_package.my_module:Sharpen: {amount: 0.5}}]`. Its
    constructor's parameters are its arguments, but for `classes` (their number), `image_size` (in pixels) and `plan` (a
    `config.plan.Plan`), which are given to those that take them.
    """

    stage: ClassVar[Literal["uint8", "float", "batch"]]
    # Of distcnn's own: the first of its streams of the key that they share. Golden curves hang on these numbers. None:
    # a key by the class's name.
    first_stream: ClassVar[int | None] = None
    sizes: tuple[int, ...] = ()  # the sides in pixels of what it makes of the images, besides their own

    def draw(self, places: Places) -> Drawn:
        """Return what is random of [n] images (n may be 0): by name, [n] integers, booleans or floats each."""
        return {}


class ImageOperation(Operation):
    """An operation on images [n, H, W, C]: of stage `uint8` as they are stored, of stage `float` normalised, float32.

    Those of stage `uint8` run on the training's device, or in the workers of the streaming loader.
    """

    stage: ClassVar[Literal["uint8", "float", "batch"]] = "uint8"

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images of the same shape and dtype. It may write into float32 images, never into uint8 ones."""


class BatchOperation(Operation):
    """An operation on a micro-batch whose images are normalised, and on its labels."""

    stage: ClassVar[Literal["uint8", "float", "batch"]] = "batch"

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Return images [n, H, W, C] float32 and labels, for an optimizer step counted from the start of the run.

        Labels are [n] int64, or [n, classes] float32 probabilities.
        """
