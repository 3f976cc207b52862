"""The augmentation of a run: its operations in order, with their parameters packed for transfer to the device."""

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
from distcnn.config.schema import DataConfig
from distcnn.config.types import named
from distcnn.data.augment import OPERATIONS, impossible_order
from distcnn.data.augment.crop import Crop
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.operation import BatchOperation, Draws, ImageOperation, Operation, Places
from distcnn.errors import InputError


class OperationGroup:
    """Consecutive operations whose draws for n images are packed into one [K, n] int64 tensor: a single device copy.

    Floats are stored as the bits of float64. Columns correspond to images and may be sliced.
    """

    def __init__(self, operations: Sequence[Operation], subkeys: Sequence[tuple[int, ...]]):
        """`subkeys` holds each operation's part of the key. Raises InputError for draws that are not of shape [n]."""
        self.operations, self.subkeys = operations, subkeys
        none = np.empty(0, np.int64)
        self.rows = [  # per operation: (name, whether it is a float) of each draw
            [(name, values.dtype.kind == "f") for name, values in drawn.items()]
            for drawn in self._drawn(Places(0, 0, none, none, 1, 1))
        ]

    def draw(self, places: Places) -> Tensor:
        """Draw the parameters of n images: [K, n] int64 on the CPU."""
        rows = [_packed(values) for drawn in self._drawn(places) for values in drawn.values()]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, len(places.positions), dtype=torch.int64)

    def unpack(self, draws: Tensor) -> list[Draws]:
        """Return the draws of each operation by name, as views of [K, n]."""
        rows = iter(draws.unbind())
        return [
            {name: next(rows).view(torch.float64) if floats else next(rows) for name, floats in names}
            for names in self.rows
        ]

    def _drawn(self, places: Places) -> Iterator[dict[str, NDArray[Any]]]:
        for operation, subkey in zip(self.operations, self.subkeys, strict=True):
            keyed_places = replace(places, subkey=subkey, first_stream=operation.first_stream or 0)
            drawn = dict(operation.draw(keyed_places))
            for name, values in drawn.items():
                if values.shape != places.positions.shape or values.dtype.kind not in "biuf":
                    raise InputError(
                        f"data.augment: {type(operation).__name__}.draw, {name}: should be one number for each of the "
                        f"{len(places.positions)} images, not {values.dtype} of shape {list(values.shape)}"
                    )
            yield drawn


class OnBytes(OperationGroup):
    """The operations on uint8 images. An adjacent flip and crop are fused into one gather."""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Apply the operations to images [n, H, W, C] uint8, with draws [K, n] on the same device."""
        rest = list(zip(self.operations, self.unpack(draws), strict=True)) if self.operations else []
        while rest:
            (one, drawn), (other, others) = rest.pop(0), rest[0] if rest else (None, {})
            if isinstance(one, Flip) and isinstance(other, Crop):
                images = other.windows(images, others["down"], others["right"], drawn["mirrored"])
            elif isinstance(one, Crop) and isinstance(other, Flip):
                mirrored, right = others["mirrored"], drawn["right"]
                # `windows` crops the mirror image instead of mirroring the crop.
                right = torch.where(mirrored.bool(), -right, right)
                images = one.windows(images, drawn["down"], right, mirrored)
            elif isinstance(one, ImageOperation):
                images = one(images, drawn)
                continue
            rest.pop(0)
        return images


class OnFloats(OperationGroup):
    """The operations on normalised images and on batches."""

    def __call__(self, images: Tensor, labels: Tensor, draws: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Apply the operations to images [n, H, W, C] float32 and labels [n], with draws [K, n] on the same device.

        Returns images [n, H', W', C] float32 and labels, [n] int64 or [n, classes] float32 probabilities.
        """
        for operation, drawn in zip(self.operations, self.unpack(draws) if self.operations else (), strict=True):
            if isinstance(operation, BatchOperation):
                images, labels = operation(images, labels, drawn, step)
            elif isinstance(operation, ImageOperation):
                images = operation(images, drawn)
        return images, labels


class Pipeline:
    """All operations of a run: `on_bytes` before normalisation, `on_floats` after it."""

    def __init__(self, operations: Sequence[ImageOperation | BatchOperation] = ()):
        """Raise InputError if an operation follows one of a later stage."""
        if problem := impossible_order([(type(one).__name__, one.stage) for one in operations]):
            raise InputError(f"data.augment: {problem}")
        bytes_ = [one for one in operations if isinstance(one, ImageOperation) and one.stage == "uint8"]
        subkeys = list(_subkeys(operations))
        self.on_bytes = OnBytes(bytes_, subkeys[: len(bytes_)])
        self.on_floats = OnFloats(operations[len(bytes_) :], subkeys[len(bytes_) :])
        self.sizes = tuple(size for one in operations for size in one.sizes)  # further image sides, in pixels


def build_pipeline(config: DataConfig, *, classes: int, image_size: int, plan: Plan) -> Pipeline:
    """Build the operations of `data.augment`. Raises InputError for invalid ones."""
    operations = []
    for name, args in map(named, config.augment):
        try:
            built = OPERATIONS.build(name, args, classes=classes, image_size=image_size, plan=plan)
        except (TypeError, ValueError) as error:  # a user's abstract class, or its own validation
            raise InputError(f"data.augment: {name}: {error}") from error
        if not isinstance(built, ImageOperation | BatchOperation):
            kinds = f"{ImageOperation.__module__}.ImageOperation or BatchOperation"
            raise InputError(f"data.augment: {name}: should be an {kinds}, not {type(built).__name__}")
        operations.append(built)
    return Pipeline(operations)


def _subkeys(operations: Sequence[Operation]) -> Iterator[tuple[int, ...]]:
    """Each operation's part of the key: a hash of its class name, and its index among those of the same class."""
    before = Counter[str]()
    for one in operations:
        name = type(one).__qualname__
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        own = () if one.first_stream is not None else (number,)
        yield (*own, before[name]) if before[name] else own
        before[name] += 1


def _packed(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.float64).view(np.int64) if values.dtype.kind == "f" else values.astype(np.int64)
