"""The augmentation of a run: its operations, in their order, and how what they draw gets to where it is used."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcnn.config.plan import Plan
from distcnn.config.schema import DataConfig, named
from distcnn.data.augment import OPERATIONS, impossible_order
from distcnn.data.augment.crop import Crop
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.operation import BatchOperation, Draws, ImageOperation, Operation, Places
from distcnn.errors import InputError


class Part:
    """Some of a run's operations, and their draws for n images, packed: one [K, n] int64 tensor, one copy to a device.

    Floats travel as the bits of float64. A part of the columns is that of a part of the images.
    """

    def __init__(self, operations: Sequence[Operation], owners: Sequence[tuple[int, ...]]):
        """`owners`: what the numbers of each operation are keyed by. Raises InputError for draws not of shape [n]."""
        self.operations, self.owners = operations, owners
        none = np.empty(0, np.int64)
        self.rows = [  # of each operation: the names of its draws, and whether they are floats
            [(name, values.dtype.kind == "f") for name, values in drawn.items()]
            for drawn in self._drawn(Places(0, 0, none, none, 1, 1))
        ]

    def draw(self, places: Places) -> Tensor:
        """Draw for n images: [K, n], on the CPU."""
        rows = [_packed(values) for drawn in self._drawn(places) for values in drawn.values()]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, len(places.positions), dtype=torch.int64)

    def unpack(self, draws: Tensor) -> list[Draws]:
        """Give each operation its own draws, by their names: views of [K, n]."""
        rows = iter(draws.unbind())
        return [
            {name: next(rows).view(torch.float64) if floats else next(rows) for name, floats in names}
            for names in self.rows
        ]

    def _drawn(self, places: Places) -> Iterator[dict[str, NDArray[Any]]]:
        for operation, owner in zip(self.operations, self.owners, strict=True):
            own = replace(places, owner=owner, first_stream=operation.first_stream or 0)
            drawn = dict(operation.draw(own))
            for name, values in drawn.items():
                if values.shape != places.positions.shape or values.dtype.kind not in "biuf":
                    raise InputError(
                        f"data.augment: {type(operation).__name__}.draw, {name}: should be one number for each of the "
                        f"{len(places.positions)} images, not {values.dtype} of shape {list(values.shape)}"
                    )
            yield drawn


class OnBytes(Part):
    """The operations on images as they are stored. A flip and a crop that stand side by side are one gather."""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images [n, H, W, C] uint8 and their draws [K, n], on one device → images of the same shape."""
        rest = list(zip(self.operations, self.unpack(draws), strict=True)) if self.operations else []
        while rest:
            (one, drawn), (other, others) = rest.pop(0), rest[0] if rest else (None, {})
            if isinstance(one, Flip) and isinstance(other, Crop):
                images = other.windows(images, others["down"], others["right"], drawn["mirrored"])
            elif isinstance(one, Crop) and isinstance(other, Flip):
                mirrored, right = others["mirrored"], drawn["right"]
                # The mirror image is cropped, not the crop mirrored.
                right = torch.where(mirrored.bool(), -right, right)
                images = one.windows(images, drawn["down"], right, mirrored)
            elif isinstance(one, ImageOperation):
                images = one(images, drawn)
                continue
            rest.pop(0)
        return images


class OnFloats(Part):
    """The operations on normalised images, and on whole batches."""

    def __call__(self, images: Tensor, labels: Tensor, draws: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images [n, H, W, C] float32, labels [n] and draws [K, n], on one device, of an optimizer step of the run.

        Returns images [n, H', W', C] float32 and labels, [n] int64 or [n, classes] float32 probabilities.
        """
        for operation, drawn in zip(self.operations, self.unpack(draws) if self.operations else (), strict=True):
            if isinstance(operation, BatchOperation):
                images, labels = operation(images, labels, drawn, step)
            elif isinstance(operation, ImageOperation):
                images = operation(images, drawn)
        return images, labels


class Pipeline:
    """All operations of a run: first those `on_bytes`, then, after normalising, those `on_floats`."""

    def __init__(self, operations: Sequence[ImageOperation | BatchOperation] = ()):
        """Raise InputError for an order that is not possible."""
        if problem := impossible_order([(type(one).__name__, one.stage) for one in operations]):
            raise InputError(f"data.augment: {problem}")
        bytes_ = [one for one in operations if isinstance(one, ImageOperation) and one.stage == "uint8"]
        owners = list(_owners(operations))
        self.on_bytes = OnBytes(bytes_, owners[: len(bytes_)])
        self.on_floats = OnFloats(operations[len(bytes_) :], owners[len(bytes_) :])
        self.sizes = tuple(size for one in operations for size in one.sizes)  # sides that images get, in pixels


def build_pipeline(config: DataConfig, *, classes: int, image_size: int, plan: Plan) -> Pipeline:
    """Build the operations of `data.augment`. Raises InputError."""
    operations = []
    for name, args in map(named, config.augment):
        try:
            built = OPERATIONS.build(name, args, classes=classes, image_size=image_size, plan=plan)
        except (TypeError, ValueError) as error:  # a class of the user's without `__call__`, or what it finds wrong
            raise InputError(f"data.augment: {name}: {error}") from error
        if not isinstance(built, ImageOperation | BatchOperation):
            kinds = f"{ImageOperation.__module__}.ImageOperation or BatchOperation"
            raise InputError(f"data.augment: {name}: should be an {kinds}, not {type(built).__name__}")
        operations.append(built)
    return Pipeline(operations)


def _owners(operations: Sequence[Operation]) -> Iterator[tuple[int, ...]]:
    """What each operation's numbers are keyed by: its class's name, and how many of its class stand before it."""
    before = Counter[str]()
    for one in operations:
        name = type(one).__qualname__
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        own = () if one.first_stream is not None else (number,)
        yield (*own, before[name]) if before[name] else own
        before[name] += 1


def _packed(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.float64).view(np.int64) if values.dtype.kind == "f" else values.astype(np.int64)
