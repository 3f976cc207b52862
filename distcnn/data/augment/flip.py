"""Horizontal flip, random or alternating between epochs."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from distcnn.data.augment.operation import Drawn, Draws, ImageOperation, Places
from distcnn.data.keyed import uniform

_ALTERNATING = 2**33  # a key outside the range of epoch numbers


@dataclass(frozen=True)
class Flip(ImageOperation):
    """Mirror each image with probability 1/2, or, if `alternating`, in every other epoch.

    The alternating flip (Jordan 2024, arXiv:2404.00498, section 3.6) mirrors a random half of the images, keyed by
    (seed, index), in even epochs and the other half in odd ones, so any two consecutive epochs show each image both
    ways.
    """

    alternating: Annotated[bool, Field(description="mirror an image every other epoch, not at random")] = False

    first_stream = 0

    def draw(self, places: Places) -> Drawn:
        """Draw whether each image is mirrored."""
        if self.alternating:
            half = uniform(places.keyed(_ALTERNATING), places.indices, 0) < 0.5
            return {"mirrored": half ^ (places.epoch % 2 == 1)}
        return {"mirrored": places.uniform(0) < 0.5}

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Mirror the drawn ones of images [n, H, W, C] uint8."""
        n, both = len(images), torch.cat((images, images.flip(2)))
        # Images are gathered: a bytewise `torch.where` takes twice as long on a CPU.
        return both.index_select(0, draws["mirrored"] * n + torch.arange(n, device=images.device))
