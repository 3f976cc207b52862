"""Waiting for the device without losing sight of the other ranks."""

import time
from collections.abc import Callable
from typing import Protocol

import torch

_FIRST_S, _LAST_S = 50e-6, 0.01  # pauses between two looks


class Mark(Protocol):
    """A place in the device's work: a torch.cuda.Event."""

    def query(self) -> bool:
        """Whether the device has come to it; waits for nothing."""


def wait_for_device(device: torch.device, lost: Callable[[], Exception | None]) -> float:
    """Wait until the device has done all that the current stream was given; returns the seconds it took.

    To read a value (`.cpu()`) would wait too, but in a place that nothing can call the thread back from: where a rank
    has died, NCCL's kernels wait for it without end, and the device with them. Here `lost` is asked again and again,
    and the exception that it returns is raised. On a CPU nothing happens.
    """
    if device.type != "cuda":
        return 0.0
    end = torch.cuda.Event()  # type: ignore[no-untyped-call]
    end.record()
    return wait_for(end, lost)


def wait_for(mark: Mark, lost: Callable[[], Exception | None]) -> float:
    """Look at the mark until it is come to; returns the seconds that took, or raises what `lost` returns."""
    began = time.monotonic()
    while not mark.query():
        if error := lost():
            raise error
        passed = time.monotonic() - began
        time.sleep(min(max(passed / 100, _FIRST_S), _LAST_S))  # the device idles for 1 % of the wait at most
    return time.monotonic() - began
