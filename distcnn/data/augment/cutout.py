"""Cutout (DeVries and Taylor 2017, arXiv:1708.04552): a square of each image is set to the mean colour."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

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
    if args["size"] > size:
        yield ("data.augment", "data.image_size"), f"cutout: size: larger than the image ({size} pixels)"


@checked_by(_check)
@dataclass(frozen=True)
class Cutout(ImageOperation):
    """Fill a square with zeros, which is the mean colour after normalisation.

    Its centre is drawn uniformly over the image, so it may extend beyond the edges.
    """

    size: Annotated[Int, Field(ge=1, description="side in pixels")]

    stage = "float"
    first_stream = 3

    def draw(self, places: Places) -> Drawn:
        """Draw the row and column of the upper left corner of each square."""
        return {name: np.floor(places.uniform(i) * side).astype(np.int64) - self.size // 2
                for i, (name, side) in enumerate((("top", places.height), ("left", places.width)))}  # fmt: skip

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Blank the squares of images [n, H, W, C] float32, in place."""
        _, height, width, _ = images.shape
        images.permute(0, 3, 1, 2).masked_fill_(self.mask(draws, height, width), 0)
        return images

    def mask(self, draws: Draws, height: int, width: int) -> Tensor:
        """Return [n, 1, H, W] bool, True inside the square."""
        top, left = draws["top"], draws["left"]
        rows = torch.arange(height, device=top.device) - top[:, None]  # [n, H], relative to the square's first row
        columns = torch.arange(width, device=top.device) - left[:, None]
        return (
            ((rows >= 0) & (rows < self.size))[:, None, :, None]
            & ((columns >= 0) & (columns < self.size))[:, None, None, :]
        )  # fmt: skip
