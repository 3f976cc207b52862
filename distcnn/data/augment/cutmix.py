"""CutMix (Yun et al. 2019, arXiv:1905.04899): a box of one image in another, and their labels by its pixels."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distcnn.config.schema import Float
from distcnn.data.augment.mixing import mixed_labels, mixed_once
from distcnn.data.augment.operation import BatchOperation, Drawn, Draws, Places
from distcnn.registry import checked_by


@checked_by(mixed_once)
@dataclass(frozen=True)
class Cutmix(BatchOperation):
    """Put a box of the image before it in its micro-batch, which is in random order, into each image.

    It has the image's proportions and is centred anywhere in it; what hangs over the edge does not count.
    """

    classes: int
    alpha: Annotated[Float, Field(gt=0, le=4, description="1 - the box's part is drawn from Beta(alpha, alpha)")] = 1.0

    first_stream = 5

    def draw(self, places: Places) -> Drawn:
        """Draw each box's first row and column, and the ones after its last."""
        part = 1 - places.beta(self.alpha)  # of the image's pixels
        bounds = {}
        names = ("top", "bottom"), ("left", "right")
        for i, (size, (first, last)) in enumerate(zip((places.height, places.width), names, strict=True)):
            side = np.floor(size * np.sqrt(part))
            begin = np.floor(places.uniform(i) * size) - side // 2
            bounds[first] = begin.clip(0, size).astype(np.int64)
            bounds[last] = (begin + side).clip(0, size).astype(np.int64)
        return bounds

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Images [n, H, W, C] float32 and labels [n] → images with a box each and probabilities [n, classes]."""
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
