"""Augmentation and normalisation of a whole batch at once, on its device; draws depend on (seed, epoch, position)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distcnn.data.augment.mix import Mix
from distcnn.data.augment.randaugment import RandAugment
from distcnn.data.keyed import keyed, uniform

_ALTERNATING = 2**33  # a key beside those of the epochs


@dataclass(frozen=True)
class Augment:
    """Flip, padded random crop, cutout, mixing and RandAugment. The neutral values leave the images alone."""

    flip: bool | Literal["alternating"] = False
    crop_padding: int = 0  # pixels
    crop_mode: Literal["zeros", "reflect"] = "zeros"
    cutout: int = 0  # pixels a side; centred anywhere in the image, so that it may hang over the edge
    mix: Mix | None = None
    randaugment: RandAugment | None = None  # after the crop, by the streaming loader's workers

    @property
    def active(self) -> bool:
        """Whether there is anything to draw; RandAugment draws by itself."""
        return bool(self.flip) or self.crop_padding > 0 or self.cutout > 0 or self.mix is not None

    def draw(
        self,
        seed: int,
        epoch: int,
        positions: NDArray[np.int64],
        indices: NDArray[np.int64],
        height: int,
        width: int,
    ) -> Tensor:
        """[n, 5 + k] int64 for the images `indices` [n] at `positions` [n] of an epoch's order.

        They are: flip, row and column offset of the crop, row and column of the cutout, then those of `mix`, if any.
        The alternating flip (Jordan 2024, arXiv:2404.00498, section 3.6) mirrors a random half of the images, drawn by
        (seed, index), in the first epoch, the other half in the next, and so on in turn: two epochs show every image
        both ways.
        """
        key = keyed(seed, epoch)
        span = 2 * self.crop_padding + 1
        if self.flip == "alternating":
            flip = (uniform(keyed(seed, _ALTERNATING), indices, 0) < 0.5) ^ (epoch % 2 == 1)
        else:
            flip = (uniform(key, positions, 0) < 0.5) & self.flip
        columns = [
            flip,
            np.floor(uniform(key, positions, 1) * span) - self.crop_padding,
            np.floor(uniform(key, positions, 2) * span) - self.crop_padding,
            np.floor(uniform(key, positions, 3) * height) - self.cutout // 2,
            np.floor(uniform(key, positions, 4) * width) - self.cutout // 2,
            *(self.mix.draw(key, positions, height, width) if self.mix else ()),
        ]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))

    def batch(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images [n, H, W, C] uint8, contiguous, and their draws → [n, H, W, C] uint8, on the same device.

        A row of a crop lies in memory in one piece, W·C bytes of a row of the padded image: what is gathered is such
        pieces, not pixels, from the images and from their mirror images. Cutout and mixing are left to the loader:
        after normalising, the square is filled with zeros, the mean colour.
        """
        if not (self.flip or self.crop_padding):
            return images
        n, height, width, channels = images.shape
        pad, reflect = self.crop_padding, self.crop_mode == "reflect"
        above = 0 if reflect else pad  # rows are mirrored by their numbers
        mirrored = images.flip(2) if self.flip or reflect else images
        padded = images.new_zeros(2 if self.flip else 1, n, above + height + above, pad + width + pad, channels)
        for out, one, other in zip(padded, (images, mirrored), (mirrored, images), strict=False):
            rows = out[:, above : above + height]
            rows[:, :, pad : pad + width] = one
            if reflect:
                rows[:, :, :pad] = other[:, :, width - 1 - pad : width - 1]
                rows[:, :, pad + width :] = other[:, :, 1 : 1 + pad]
        flip, down, right = draws[:, 0], draws[:, 1], draws[:, 2]
        if self.flip:
            right = torch.where(flip.bool(), -right, right)  # the mirror image is cropped, not the crop mirrored
        row = torch.arange(height, device=images.device) + down[:, None]  # [n, H]
        row = _reflect(row, height) if reflect else row + above
        image = flip * n + torch.arange(n, device=images.device)
        first = (image[:, None] * (height + 2 * above) + row) * (width + 2 * pad) + (right + pad)[:, None]
        # Piece number i begins at pixel i of all that is in `padded`: the pieces overlap, and nothing is copied.
        pieces = padded.as_strided((padded.numel() // channels - width + 1, width * channels), (channels, 1))
        return pieces.index_select(0, first.flatten()).view(n, height, width, channels)

    def cutout_mask(self, draws: Tensor, height: int, width: int) -> Tensor:
        """[n, 1, H, W] bool: True where the square lies."""
        rows = torch.arange(height, device=draws.device) - draws[:, 3, None]  # [n, H], from the square's first row
        columns = torch.arange(width, device=draws.device) - draws[:, 4, None]
        return (
            ((rows >= 0) & (rows < self.cutout))[:, None, :, None]
            & ((columns >= 0) & (columns < self.cutout))[:, None, None, :]
        )  # fmt: skip


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices that lie outside 0…size-1 at the border pixel, which is not repeated."""
    index = index.abs()
    return torch.where(index > size - 1, 2 * (size - 1) - index, index)


@dataclass(frozen=True)
class Normalize:
    """(x / 255 - mean) / std, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and shift, [3] float32 each: x · scale + shift for x in 0…255."""
        scale = [1 / (255 * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


class SmallAtFirst:
    """Square images at lower resolutions for the first `steps` of a run: a step costs (size / image size)² as much.

    Each of `sizes` has the same share of those steps; rising ones are progressive resizing, as in fast.ai's ImageNet
    in 18 minutes (Howard 2018, https://www.fast.ai/posts/2018-08-10-fastai-diu-imagenet.html).
    Bilinear with antialiasing, as `F.interpolate` computes it, whose weights are taken from there once: two matrix
    products then take less than half of its time on a CPU.
    """

    def __init__(self, image_size: int, sizes: Sequence[int], steps: int, device: torch.device):
        self.sizes, self.steps = sizes, steps
        unit = torch.eye(image_size)[None, None]
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for size in sizes:
            weights = F.interpolate(unit, (size, image_size), mode="bilinear", antialias=True)[0, 0]  # [size, H]
            columns = torch.kron(weights, torch.eye(3)).T  # [W·3, size·3]: each channel by itself
            self.weights[size] = weights.to(device), columns.to(device)

    def size_at(self, step: int) -> int | None:
        """Pixels a side; None: they are full size from then on."""
        return self.sizes[step * len(self.sizes) // self.steps] if step < self.steps else None

    def reduce(self, rows: Tensor, size: int) -> Tensor:
        """[n, H, W·3] float32 → [n, size, size·3]."""
        weights, columns = self.weights[size]
        return (weights @ rows).flatten(0, 1).mm(columns).view(len(rows), size, -1)


def statistics(images: NDArray[np.uint8]) -> Normalize:
    """Mean and standard deviation of each channel of [N, H, W, C] uint8 images, in 0…1, from exact integer sums.

    For the original CIFAR-10: 0.4914/0.4822/0.4465 and 0.2470/0.2435/0.2616. A channel that never varies would
    divide by zero: its standard deviation is given as 1.
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
