"""Base classes of augmentation operations: random parameters per image, and their application at one stage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distcnn.data import keyed

Drawn = Mapping[str, NDArray[Any]]  # parameter name → [n] values
Draws = Mapping[str, Tensor]  # the same on the images' device: int64, or float64 for floats


@dataclass(frozen=True)
class Places:
    """The n images that an operation draws parameters for, and their random numbers.

    The numbers are a function of the run's seed, the epoch, the position in the epoch's order and the operation,
    independent of rank, worker, batch and earlier draws.
    """

    seed: int
    epoch: int
    positions: NDArray[np.int64]  # [n], in the epoch's order
    indices: NDArray[np.int64]  # [n], in the data set
    height: int  # of the images, in pixels
    width: int
    subkey: tuple[int, ...] = ()  # the operation's part of the key
    first_stream: int = 0

    def keyed(self, part: int) -> int:
        """Return the operation's key for (seed, part); `key` is that of (seed, epoch)."""
        return keyed.keyed(self.seed, part, *self.subkey)

    @property
    def key(self) -> int:
        """The operation's key in this epoch."""
        return self.keyed(self.epoch)

    def uniform(self, stream: int) -> NDArray[np.float64]:
        """Return [n] numbers in [0, 1); the streams of an operation, 0…7, are mutually independent."""
        return keyed.uniform(self.key, self.positions, self.first_stream + stream)

    def beta(self, alpha: float) -> NDArray[np.float64]:
        """Return [n] samples of Beta(alpha, alpha), independent of the streams of `uniform`."""
        return keyed.beta(alpha, self.key, self.positions)


class Operation(ABC):
    """Base of both kinds of operation.

    Use your own class by its name: `data.augment: [flip, {my_package.my_module:Sharpen: {amount: 0.5}}]`. Its
    arguments are the parameters of its constructor, except `classes` (their number), `image_size` (in pixels) and
    `plan` (a `config.plan.Plan`), which distcnn supplies where they are declared.
    """

    stage: ClassVar[Literal["uint8", "float", "batch"]]
    # Built-in operations share one key and are told apart by their first stream, on which the golden curves depend.
    # None: a key derived from the class name.
    first_stream: ClassVar[int | None] = None
    sizes: tuple[int, ...] = ()  # image sides in pixels that it outputs, besides the input's

    def draw(self, places: Places) -> Drawn:
        """Draw the random parameters of n images (n may be 0): by name, [n] integers, booleans or floats."""
        return {}


class ImageOperation(Operation):
    """An operation on images [n, H, W, C]: uint8 as stored (stage `uint8`), or normalised float32 (stage `float`).

    The stage `uint8` runs on the training device, or in the workers of the streaming loader.
    """

    stage: ClassVar[Literal["uint8", "float", "batch"]] = "uint8"

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images of the same shape and dtype. float32 images may be modified in place, uint8 ones must not."""


class BatchOperation(Operation):
    """An operation on the normalised images and the labels of a micro-batch."""

    stage: ClassVar[Literal["uint8", "float", "batch"]] = "batch"

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Return images [n, H', W', C] float32 and labels, [n] int64 or [n, classes] float32 probabilities.

        `step` is the optimizer step, counted from the start of the run.
        """
