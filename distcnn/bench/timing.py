"""Timestamps on a device's own clock, taken without synchronising."""

import time

import torch

Mark = torch.cuda.Event | float


def mark(device: torch.device) -> Mark:
    """Return the current time; on CUDA, an event that completes after the work queued on the current stream so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(begin: Mark, end: Mark) -> float:
    """Return the seconds between two marks of a device; to be called after `wait`."""
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]
    return float(begin.elapsed_time(end)) / 1000


def wait(device: torch.device) -> None:
    """Wait until the device has completed all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
