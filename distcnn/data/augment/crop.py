"""Random crop of the padded image, optionally fused with a horizontal flip."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distcnn.config.schema import Config
from distcnn.config.types import Int
from distcnn.data.augment.operation import Drawn, Draws, ImageOperation, Places
from distcnn.registry import Problem, checked_by


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    size = config.data.image_size
    if args["padding"] >= size:
        yield ("data.augment", "data.image_size"), f"crop: padding: must be smaller than the image ({size} pixels)"


@checked_by(_check)
@dataclass(frozen=True)
class Crop(ImageOperation):
    """Pad each side, then crop a window of the original size at a random position."""

    padding: Annotated[Int, Field(ge=1, description="pixels on each side")] = 4
    mode: Annotated[Literal["zeros", "reflect"], Field(description="padding values")] = "zeros"

    first_stream = 1

    def draw(self, places: Places) -> Drawn:
        """Draw the offset of each window, down and right, in -padding…padding pixels."""
        span = 2 * self.padding + 1
        return {name: np.floor(places.uniform(i) * span).astype(np.int64) - self.padding
                for i, name in enumerate(("down", "right"))}  # fmt: skip

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop images [n, H, W, C] uint8 at the drawn offsets."""
        return self.windows(images, draws["down"], draws["right"])

    def windows(self, images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Crop images [n, H, W, C] uint8, or their mirror images where `mirrored` [n] int64 is 1.

        A row of a window is contiguous in memory, W·C bytes of a padded row, so rows are gathered instead of pixels.
        """
        n, height, width, channels = images.shape
        pad, reflect = self.padding, self.mode == "reflect"
        above = 0 if reflect else pad  # rows are reflected by index, not padded
        both = mirrored is not None
        mirror = images.flip(2) if both or reflect else images
        padded = images.new_zeros(1 + both, n, above + height + above, pad + width + pad, channels)
        for out, one, other in zip(padded, (images, mirror), (mirror, images), strict=False):
            rows = out[:, above : above + height]
            rows[:, :, pad : pad + width] = one
            if reflect:
                rows[:, :, :pad] = other[:, :, width - 1 - pad : width - 1]
                rows[:, :, pad + width :] = other[:, :, 1 : 1 + pad]
        row = torch.arange(height, device=images.device) + down[:, None]  # [n, H]
        row = _reflect(row, height) if reflect else row + above
        image = torch.arange(n, device=images.device)
        if mirrored is not None:
            image = mirrored * n + image
        first = (image[:, None] * (height + 2 * above) + row) * (width + 2 * pad) + (right + pad)[:, None]
        # Overlapping views, no copy: piece i is the W pixels from pixel i of `padded` on.
        pieces = padded.as_strided((padded.numel() // channels - width + 1, width * channels), (channels, 1))
        return pieces.index_select(0, first.flatten()).view(n, height, width, channels)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices outside 0…size-1 about the border pixel, which is not repeated."""
    index = index.abs()
    return torch.where(index > size - 1, 2 * (size - 1) - index, index)
