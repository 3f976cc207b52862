"""Mixup (Zhang et al. 2018, arXiv:1710.09412): convex combinations of two images and of their labels."""

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

_PARTS = 2**24  # weights are multiples of 1 / _PARTS, hence exact in float32


@checked_by(check_mixed_once)
@dataclass(frozen=True)
class Mixup(BatchOperation):
    """Blend each image with its predecessor in the micro-batch, which is in random order."""

    classes: int
    alpha: Annotated[Float, Field(gt=0, le=4, description="weights are drawn from Beta(alpha, alpha)")] = 0.2

    first_stream = 0

    def draw(self, places: Places) -> Drawn:
        """Draw the weight of each image itself, 0…1."""
        return {"weight": np.rint(places.beta(self.alpha) * _PARTS) / _PARTS}

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Blend images [n, H, W, C] float32; labels [n] int64 become probabilities [n, classes] float32."""
        weight = draws["weight"].float()
        blended = torch.lerp(images.roll(1, 0), images, weight[:, None, None, None])
        return blended, mixed_labels(labels, weight, self.classes)
