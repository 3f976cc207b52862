"""Networks that keep what they were given: what a run really feeds to a model, in training and in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Forward:
    """One call of the network."""

    training: bool
    images: Tensor  # [n, 3, H, W], as they came
    channels_last: bool
    logits: Tensor  # [n, classes] float32
    mask: Tensor  # [n, hidden] what dropout left of ones
    weights: torch.dtype  # of the matrices
    threads: int
    looked: list[Any]  # what those in LOOK returned


SEEN: list[Forward] = []
LOOK: list[Callable[[], Any]] = []  # asked at every call; put there by whoever starts the run


class Net(nn.Module):
    """Convolution, hidden layer and head, for images of any size from 4×4 on. Without BatchNorm, unless it is asked for."""

    def __init__(self, num_classes: int, width: int = 8, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.hidden = nn.Linear(16 * width, 16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(F.adaptive_max_pool2d(F.relu(self.norm(self.conv(x))), 4).flatten(1)))
        mask = self.dropout(torch.ones_like(hidden))
        logits: Tensor = self.head(hidden * mask)
        if not x.is_meta:  # there only the shapes are tried
            kept = (x.detach().clone(), x.is_contiguous(memory_format=torch.channels_last))
            kept += (logits.detach().float(), mask.detach())
            SEEN.append(
                Forward(
                    self.training, *kept, self.hidden.weight.dtype, torch.get_num_threads(), [look() for look in LOOK]
                )
            )
        return logits


class TwoHeads(nn.Module):
    """Takes another head where torch.compile has compiled it."""

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        self.eager, self.compiled = (nn.Linear(3 * image_size**2, num_classes, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.compiled if torch.compiler.is_compiling() else self.eager)(x.flatten(1))
        return logits
