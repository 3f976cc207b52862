"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): random operations per image, all of one magnitude."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from distcnn.config.schema import Config
from distcnn.config.types import Int
from distcnn.data.augment.operation import Drawn, Draws, ImageOperation, Places
from distcnn.data.keyed import keyed, uniform
from distcnn.registry import Problem, checked_by

# The paper's fourteen. The last eight take a random sign: a direction, or more or less of an effect.
OPERATIONS = (
    "identity", "autocontrast", "equalize", "posterize", "solarize", "rotate", "color", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
STRONGEST = 30


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if config.data.loader == "resident":
        text = "randaugment runs in CPU workers: set data.loader streaming"
        yield ("data.augment", "data.loader"), text


@checked_by(_check)
@dataclass(frozen=True)
class RandAugment(ImageOperation):
    """Apply `num` random operations in sequence, all of one magnitude, with the ranges of torchvision's RandAugment.

    Runs in the workers of the streaming loader. Images that drew the same operation are processed as one batch.
    """

    num: Annotated[Int, Field(ge=1, le=14, description="operations per image")] = 2
    magnitude: Annotated[Int, Field(ge=0, le=30, description="their strength, 30 being the strongest")] = 9

    first_stream = 0

    def draw(self, places: Places) -> Drawn:
        """Draw the operations of each image, as indices into OPERATIONS, and their signs, 1 or -1."""
        drawn = {}
        for i in range(self.num):
            key = keyed(places.key, 1, i)
            drawn[f"operation {i}"] = np.floor(uniform(key, places.positions, 0) * len(OPERATIONS)).astype(np.int64)
            drawn[f"sign {i}"] = np.where(uniform(key, places.positions, 1) < 0.5, 1, -1)
        return drawn

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply the drawn operations to images [n, H, W, 3] uint8 on the CPU."""
        images = images.permute(0, 3, 1, 2).clone()  # [n, 3, H, W]
        for i in range(self.num):
            operations, signs = draws[f"operation {i}"], draws[f"sign {i}"]
            for number, name in enumerate(OPERATIONS):
                for sign in (1, -1):
                    rows = ((operations == number) & (signs == sign)).nonzero().flatten()
                    if len(rows):
                        images[rows] = apply(name, images[rows], sign * self.magnitude / STRONGEST)
        return images.permute(0, 2, 3, 1).contiguous()


def apply(name: str, images: Tensor, strength: float) -> Tensor:
    """Apply one operation to [n, 3, H, W] uint8; strength in -1…1, whose sign some ignore. Gaps are black."""

    def moved(x: float = 0.0, y: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0) -> Tensor:
        shear, offset = [float(np.degrees(np.arctan(s))) for s in (shear_x, shear_y)], [int(x), int(y)]
        # Shear about the upper left corner, as PIL does.
        center = [0.0, 0.0] if shear_x or shear_y else None
        out: Tensor = V.affine(images, angle=0.0, translate=offset, scale=1.0, shear=shear, center=center)
        return out

    amount, (height, width) = abs(strength), images.shape[-2:]
    operations: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: images,
        "autocontrast": lambda: V.autocontrast(images),
        "equalize": lambda: V.equalize(images),
        "posterize": lambda: V.posterize(images, 8 - round(4 * amount)),
        "solarize": lambda: V.solarize(images, 255 * (1 - amount)),
        "rotate": lambda: V.rotate(images, 30 * strength),
        "color": lambda: V.adjust_saturation(images, 1 + 0.9 * strength),
        "contrast": lambda: V.adjust_contrast(images, 1 + 0.9 * strength),
        "brightness": lambda: V.adjust_brightness(images, 1 + 0.9 * strength),
        "sharpness": lambda: V.adjust_sharpness(images, 1 + 0.9 * strength),
        "shear_x": lambda: moved(shear_x=0.3 * strength),
        "shear_y": lambda: moved(shear_y=0.3 * strength),
        "translate_x": lambda: moved(x=150 / 331 * width * strength),
        "translate_y": lambda: moved(y=150 / 331 * height * strength),
    }
    out: Tensor = operations[name]()
    return out
