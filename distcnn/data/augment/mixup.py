"""Mixup (Zhang et al. 2018, arXiv:1710.09412): two images blended, and their labels with them."""

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

_PARTS = 2**24  # weights are rounded to that many, so that they are exact in float32


@checked_by(mixed_once)
@dataclass(frozen=True)
class Mixup(BatchOperation):
    """Blend each image with the one before it in its micro-batch, which is in random order."""

    classes: int
    alpha: Annotated[Float, Field(gt=0, le=4, description="weights are drawn from Beta(alpha, alpha)")] = 0.2

    first_stream = 0

    def draw(self, places: Places) -> Drawn:
        """Draw each image's own weight, 0…1."""
        return {"weight": np.rint(places.beta(self.alpha) * _PARTS) / _PARTS}

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Images [n, H, W, C] float32 and labels [n] → blended ones and probabilities [n, classes]."""
        weight = draws["weight"].float()
        blended = torch.lerp(images.roll(1, 0), images, weight[:, None, None, None])
        return blended, mixed_labels(labels, weight, self.classes)
