"""Faults from inside a rank, for chaos.py: imported as the model of a run, armed by `CHAOS = fault:rank:when`."""

import os
import signal
import time

import torch
from torch import Tensor, nn

FAULT, RANK, WHEN = (*os.environ.get("CHAOS", "none:0:0").split(":"), "0")[:3]
HERE = os.environ.get("RANK", "0") == RANK


class Net(nn.Module):
    """A small network with dropout and BatchNorm; its forward counts the training steps of this life."""

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(8 * ((image_size - 1) // 2) ** 2, num_classes),
        )  # fmt: skip
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            self.calls += 1
            if HERE and self.calls == int(WHEN):
                if FAULT == "exception":
                    raise LookupError("planted in this rank")
                if FAULT == "nan":
                    x = x * torch.nan
                if FAULT == "clock":
                    jump_the_clock()
        return self.body(x)


def jump_the_clock() -> None:
    """A day back: as when a clock is set right."""
    right = time.time
    time.time = lambda: right() - 86_400


def die_in_a_save() -> None:
    """SIGKILL at the n-th of the system calls that make a file durable, before or after it."""
    count = 0

    def wrap(name: str) -> None:
        call = getattr(os, name)

        def killing(*arguments, **options):
            nonlocal count
            count += 1
            if count == int(WHEN):
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        setattr(os, name, killing)

    for name in ("fsync", "replace", "link", "unlink"):
        wrap(name)


if FAULT == "save" and HERE:
    die_in_a_save()
