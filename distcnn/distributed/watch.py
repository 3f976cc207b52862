"""What a step tells of itself: which phase begins, and how many steps are done."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Watch:
    """Hear what the main thread does next, and do nothing with it: the base of Watchdog and of bench's Stopwatch."""

    def __init__(self, device: torch.device):
        self.device = device
        self.waited_s = 0.0  # the main thread has stood still for the others; on CUDA the host's view of it
        self.data_s = 0.0  # it has made, or waited for, batches

    def enter(self, phase: str) -> None:
        """Note that the main thread begins another phase. Called several times a step; costs next to nothing."""

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Enter the phase anew for each of the items, and yield it."""
        for item in items:
            self.enter(phase)
            yield item

    def steps_done(self, step: int) -> None:
        """Note that the main thread has done `step` steps."""

    def wait_for_device(self) -> float:
        """Wait until the device has done what it was given; return the seconds. On a CPU do nothing.

        May raise LostRankError where another rank is known to have gone.
        """
        return 0.0

    def device_busy_s(self) -> float:
        """Return the device's own seconds in the steps since the last call, after `wait_for_device`."""
        return 0.0
