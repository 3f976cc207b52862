"""The network of the published CIFAR-10 speed-runs: a whitening layer computed from the data, then three blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WhitenedCNN(nn.Module):
    """Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498): 1,971,328 trained parameters.

    The first layer is frozen: its filters are the whitened principal components of the training images' 2×2 patches,
    and their negatives (`init_from_images`). The other convolutions are initialised to the identity on their first
    channels (Dirac). BatchNorm scales are fixed at 1. The logits are divided by the last width, and the head's initial
    weights have a standard deviation of 1, so that its learning rate can be set independently (`optim.head_lr`).

    The paper also trains a bias of the first layer for some epochs; it is omitted here, which saves the gradient with
    respect to the first block's input.
    """

    def __init__(self, num_classes: int = 10, widths: tuple[int, int, int] = (64, 256, 256), momentum: float = 0.4):
        super().__init__()
        patch = 3 * 2 * 2
        self.whiten = nn.Conv2d(3, 2 * patch, 2, bias=False)
        self.whiten.weight.requires_grad = False
        before = (2 * patch, *widths)
        self.blocks = nn.Sequential(*[_Block(i, o, momentum) for i, o in zip(before, widths, strict=False)])
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Compute the whitening filters from normalised images [n, 3, H, W] float32."""
        size = self.whiten.weight[0].shape  # [3, 2, 2]
        patches = images.unfold(2, size[1], 1).unfold(3, size[2], 1)  # [n, 3, H-1, W-1, 2, 2]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, size.numel()).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        rows = vectors.T / (values[:, None] + 5e-4).sqrt()  # [12, 12]; the constant keeps noise from being amplified
        # An eigenvector's sign is arbitrary: make the largest entry positive, whatever the LAPACK library.
        rows *= rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
        filters = rows.reshape(-1, *size)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W], H and W at least 9, to [N, classes] logits. Shapes below: 32×32 images, default widths."""
        x = F.gelu(self.whiten(x))  # [N, 24, 31, 31]
        x = self.blocks(x)  # [N, 64, 15, 15], [N, 256, 7, 7], [N, 256, 3, 3]
        x = x.amax(dim=(2, 3))  # [N, 256]
        logits: Tensor = self.head(x) / x.shape[1]
        return logits


class _Block(nn.Module):
    """Two 3×3 convolutions; pooling precedes the first BatchNorm: [N, before, H, W] → [N, after, H//2, W//2]."""

    def __init__(self, before: int, after: int, momentum: float):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(i, after, 3, padding=1, bias=False) for i in (before, after))
        self.norm1, self.norm2 = (nn.BatchNorm2d(after, eps=1e-12, momentum=momentum) for _ in range(2))
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad = False
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))
