"""Points in time on a device's own clock: to take one waits for nothing."""

import time

import torch

Mark = torch.cuda.Event | float


def mark(device: torch.device) -> Mark:
    """Now; on CUDA the moment at which what the current stream has been given so far will be done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(begin: Mark, end: Mark) -> float:
    """Seconds from one mark of a device to another, after `wait`."""
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]
    return float(begin.elapsed_time(end)) / 1000


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
