"""Horizontal flip of half of the images."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from distcnn.data.augment.operation import Drawn, Draws, ImageOperation, Places
from distcnn.data.keyed import uniform

_ALTERNATING = 2**33  # a key beside those of the epochs


@dataclass(frozen=True)
class Flip(ImageOperation):
    """Mirror each image with a probability of ½, or, alternating, every other epoch.

    The alternating flip (Jordan 2024, arXiv:2404.00498, section 3.6) mirrors a random half of the images, drawn by
    (seed, index), in the first epoch, the other half in the next, and so on in turn: two epochs show every image both
    ways.
    """

    alternating: Annotated[bool, Field(description="an image is mirrored every other epoch, not at random")] = False

    first_stream = 0

    def draw(self, places: Places) -> Drawn:
        """Draw whether each image is mirrored."""
        if self.alternating:
            half = uniform(places.keyed(_ALTERNATING), places.indices, 0) < 0.5
            return {"mirrored": half ^ (places.epoch % 2 == 1)}
        return {"mirrored": places.uniform(0) < 0.5}

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images [n, H, W, C] → those that are drawn mirrored."""
        n, both = len(images), torch.cat((images, images.flip(2)))
        # Whole images are gathered: `torch.where` over the bytes takes twice as long on a CPU.
        return both.index_select(0, draws["mirrored"] * n + torch.arange(n, device=images.device))
