"""Mixup and CutMix: an image and its label mixed with those before it in its micro-batch, which is in random order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcnn.data.keyed import beta, uniform

_ONE = 2**24  # shares are drawn in so many parts: whole numbers, as all draws are, and exact in float32


@dataclass(frozen=True)
class Mix:
    """How much of each image is its own, for each by itself: a share from Beta(alpha, alpha).

    mixup (Zhang et al. 2018, arXiv:1710.09412) weighs every pixel with it. cutmix (Yun et al. 2019, arXiv:1905.04899)
    replaces a box, of the image's proportions and centred anywhere in it; what hangs over the edge does not count.
    """

    kind: Literal["mixup", "cutmix"]
    alpha: float
    classes: int

    def draw(self, key: int, positions: NDArray[np.int64], height: int, width: int) -> list[NDArray[np.float64]]:
        """Whole numbers, [n] each: the own share; for cutmix the box's first and last row (exclusive), and columns."""
        share = beta(self.alpha, key, positions)
        if self.kind == "mixup":
            return [np.rint(share * _ONE)]
        bounds = []
        for size, stream in ((height, 5), (width, 6)):
            side = np.floor(size * np.sqrt(1 - share))
            first = np.floor(uniform(key, positions, stream) * size) - side // 2
            bounds += [first.clip(0, size), (first + side).clip(0, size)]
        return bounds

    def images(self, images: Tensor, draws: Tensor) -> Tensor:
        """[n, H, W, C] float32 and their draws → the mixed images, of the same shape."""
        _, height, width, _ = images.shape
        if self.kind == "mixup":
            own = self._share(draws, height, width)[:, None, None, None]
        else:
            inside = [  # [n, H], [n, W]
                (torch.arange(size, device=draws.device) >= draws[:, i, None])
                & (torch.arange(size, device=draws.device) < draws[:, i + 1, None])
                for size, i in ((height, -4), (width, -2))
            ]
            own = 1 - (inside[0][:, :, None, None] & inside[1][:, None, :, None]).float()  # [n, H, W, 1]
        return torch.lerp(images.roll(1, 0), images, own)

    def targets(self, labels: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
        """Labels [n] int64 and their draws → [n, classes] float32 probabilities: each label's share of the pixels."""
        sure = (labels[:, None] == torch.arange(self.classes, device=labels.device)).float()
        return torch.lerp(sure.roll(1, 0), sure, self._share(draws, height, width)[:, None])

    def _share(self, draws: Tensor, height: int, width: int) -> Tensor:
        """[n] float32 in 0…1."""
        if self.kind == "mixup":
            return draws[:, -1].float() / _ONE
        top, bottom, left, right = draws[:, -4:].unbind(1)
        return 1 - ((bottom - top) * (right - left)).float() / (height * width)
