"""Normalisation by per-channel mean and standard deviation, given or measured."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """(x / 255 - mean) / std, per channel (red, green, blue)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return scale and shift, [3] float32 each, such that x · scale + shift normalises x in 0…255."""
        scale = [1 / (255 * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def statistics(images: NDArray[np.uint8]) -> Normalize:
    """Measure the per-channel mean and standard deviation of [N, H, W, 3] uint8 images, from exact integer sums.

    For the original CIFAR-10: 0.4914/0.4822/0.4465 and 0.2470/0.2435/0.2616. A constant channel gets a standard
    deviation of 1, to avoid a division by zero.
    """
    n, channels = images[..., 0].size, images.shape[-1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(images), 512):
        flat = images[start : start + 512].reshape(-1, images[0].size).astype(np.uint32)  # [n, H·W·C]
        total += flat.sum(axis=0, dtype=np.int64).reshape(-1, channels).sum(axis=0)
        squares += np.einsum("ij,ij->j", flat, flat).astype(np.int64).reshape(-1, channels).sum(axis=0)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    std[std == 0] = 255
    (m0, m1, m2), (s0, s1, s2) = (mean / 255).tolist(), (std / 255).tolist()
    return Normalize((m0, m1, m2), (s0, s1, s2))
