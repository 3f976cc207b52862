"""Wait for the device, but not for a rank that is lost."""

import time
from collections.abc import Callable
from typing import Protocol

import torch

_FIRST_S, _LAST_S = 50e-6, 0.01  # pauses between queries


class Mark(Protocol):
    """A point in the device's stream: a torch.cuda.Event."""

    def query(self) -> bool:
        """Whether the device has reached it; returns at once."""


def wait_for_device(device: torch.device, lost: Callable[[], Exception | None]) -> float:
    """Wait until the device has finished the current stream's work; return the seconds. A no-op on a CPU.

    Reading a value (`.cpu()`) would wait too, but could not be interrupted: if a rank has died, NCCL's kernels, and the
    device with them, wait for it forever. This polls `lost` and raises the exception that it returns.
    """
    if device.type != "cuda":
        return 0.0
    end = torch.cuda.Event()  # type: ignore[no-untyped-call]
    end.record()
    return wait_for(end, lost)


def wait_for(mark: Mark, lost: Callable[[], Exception | None]) -> float:
    """Poll the mark until it is reached; return the seconds, or raise what `lost` returns."""
    began = time.monotonic()
    while not mark.query():
        if error := lost():
            raise error
        passed = time.monotonic() - began
        time.sleep(min(max(passed / 100, _FIRST_S), _LAST_S))  # at most 1 % of the wait is added
    return time.monotonic() - began
