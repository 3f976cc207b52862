"""The clock of these benchmarks: CUDA events around blocks of steps; on the CPU, where they are only tried, time itself."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.gpu.suite import Place


def block_s(place: Place, step: Callable[[], Any], steps: int) -> float:
    """Seconds a step, of so many one after another, with nothing waited for in between."""
    if not place.cuda:
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - begun) / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / steps


def in_turn(
    place: Place, kinds: dict[str, Callable[[], Any]], steps: int, blocks: int = 5, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds a step of each kind, in blocks that take turns, as a machine's clocks change; its first block is not kept."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for step in kinds.values():
        block_s(place, step, warmup)
    for _ in range(blocks):
        for name, step in kinds.items():
            found[name].append(block_s(place, step, steps))
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, the smallest and the largest, and how many."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f}, n = {len(values)})"


def milliseconds(seconds: dict[str, list[float]]) -> str:
    """Of each kind."""
    return "; ".join(f"{name} {spread([1000 * one for one in values])} ms" for name, values in seconds.items())
