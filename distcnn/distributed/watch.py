"""The interface by which the training loop reports its phases and steps."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Watch:
    """Ignores the reported phases and steps: the base of Watchdog and of bench's Stopwatch."""

    def __init__(self, device: torch.device):
        self.device = device
        self.waited_s = 0.0  # the main thread's waits for other ranks; on CUDA as the host sees them
        self.data_s = 0.0  # making batches, or waiting for them

    def enter(self, phase: str) -> None:
        """Note that the main thread begins a phase. Called several times per step, so it must be cheap."""

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Yield the items, entering `phase` before each."""
        for item in items:
            self.enter(phase)
            yield item

    def steps_done(self, step: int) -> None:
        """Note that `step` steps are done."""

    def wait_for_device(self) -> float:
        """Wait until the device has finished its work; return the seconds. A no-op on a CPU.

        May raise LostRankError if another rank is gone.
        """
        return 0.0

    def device_busy_s(self) -> float:
        """Return the device's own seconds in the steps since the last call, after `wait_for_device`."""
        return 0.0
