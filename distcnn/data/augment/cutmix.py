"""CutMix (Yun et al. 2019, arXiv:1905.04899): a box of one image pasted into another, labels mixed by area."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distcnn.config.types import Float
from distcnn.data.augment.mixing import check_mixed_once, mixed_labels
from distcnn.data.augment.operation import BatchOperation, Drawn, Draws, Places
from distcnn.registry import checked_by


@checked_by(check_mixed_once)
@dataclass(frozen=True)
class Cutmix(BatchOperation):
    """Paste into each image a box of its predecessor in the micro-batch, which is in random order.

    The box has the image's aspect ratio and a uniformly drawn centre, and is clipped at the image's edges.
    """

    classes: int
    alpha: Annotated[Float, Field(gt=0, le=4, description="1 - the box's area is drawn from Beta(alpha, alpha)")] = 1.0

    first_stream = 5

    def draw(self, places: Places) -> Drawn:
        """Draw the bounds of each box in pixels: top and left inclusive, bottom and right exclusive."""
        area = 1 - places.beta(self.alpha)  # as a fraction of the image
        bounds = {}
        names = ("top", "bottom"), ("left", "right")
        for i, (size, (first, last)) in enumerate(zip((places.height, places.width), names, strict=True)):
            side = np.floor(size * np.sqrt(area))
            begin = np.floor(places.uniform(i) * size) - side // 2
            bounds[first] = begin.clip(0, size).astype(np.int64)
            bounds[last] = (begin + side).clip(0, size).astype(np.int64)
        return bounds

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Mix images [n, H, W, C] float32; labels [n] int64 become probabilities [n, classes] float32."""
        _, height, width, _ = images.shape
        inside = [  # [n, H], [n, W]
            (torch.arange(size, device=images.device) >= draws[first][:, None])
            & (torch.arange(size, device=images.device) < draws[last][:, None])
            for size, first, last in ((height, "top", "bottom"), (width, "left", "right"))
        ]
        own = 1 - (inside[0][:, :, None, None] & inside[1][:, None, :, None]).float()  # [n, H, W, 1]
        boxes = (draws["bottom"] - draws["top"]) * (draws["right"] - draws["left"])
        weight = 1 - boxes.float() / (height * width)
        return torch.lerp(images.roll(1, 0), images, own), mixed_labels(labels, weight, self.classes)
