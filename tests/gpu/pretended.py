"""Runs the checks' branches for CUDA on the CPU, on a stand-in for torch.cuda: python -m tests.gpu.pretended

What they find is nonsense; that a line raises anything but Wrong or Skip is a slip of the pen. Prints a line a check.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd.profiler import DeviceType

from benchmarks.gpu import parts, rates
from benchmarks.gpu import peers as _peers  # noqa: F401 - its check puts itself into the table
from tests.gpu import correct as _correct  # noqa: F401
from tests.gpu.suite import Place, Skip, Wrong
from tests.gpu.suites import CORRECT, SPEED

# The others leave all that is CUDA's to processes that they start.
CHECKS = ("T3", "T10", "T11", "S1", "S3", "S4", "S6", "S7", "S8")


class Pretended(Place):
    """The CPU, which says that it is a GPU."""

    @property
    def cuda(self) -> bool:
        return True


class Event:
    def __init__(self, enable_timing: bool = False):
        self.timed = enable_timing

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        assert self.timed
        assert end.timed
        return 1000 * (end.at - self.at)


class Stream:
    def wait_stream(self, stream: "Stream") -> None:
        assert isinstance(stream, Stream)


class Graph:
    """Makes the step that was captured, and puts its loss where the capture has said."""

    def __init__(self) -> None:
        self.loss = torch.zeros(())

    def replay(self) -> None:
        self.loss.copy_(self.step())


@contextmanager
def captured(graph: Graph) -> Iterator[None]:
    """A step made inside is noted, and not made."""
    made = parts.loop.train_step

    def noted(engine: Any, batches: Iterator[Any], *rest: Any) -> torch.Tensor:
        kept = [*batches]
        graph.step = lambda: made(engine, iter(kept), *rest)  # type: ignore[attr-defined]
        return graph.loss

    parts.loop.train_step = noted  # type: ignore[assignment]
    try:
        yield
    finally:
        parts.loop.train_step = made


STANDING_IN: dict[str, Any] = {
    "synchronize": lambda: None, "Event": Event, "Stream": Stream, "stream": lambda _: nullcontext(), "current_stream": Stream,
    "CUDAGraph": Graph, "graph": captured, "set_sync_debug_mode": lambda _: None, "reset_peak_memory_stats": lambda: None,
    "max_memory_allocated": lambda: 5 * 2**30, "empty_cache": lambda: None, "mem_get_info": lambda: (2 * 2**30, 80 * 2**30),
}  # fmt: skip


def main() -> None:
    for name, stand_in in STANDING_IN.items():
        assert hasattr(torch.cuda, name)
        setattr(torch.cuda, name, stand_in)
    rates.DeviceType = SimpleNamespace(CUDA=DeviceType.CPU)  # type: ignore[assignment,misc]
    alone = parts.alone_in_a_group
    parts.alone_in_a_group = lambda backend: alone("gloo" if backend else "")
    torch.set_num_threads(1)
    for check in [*CORRECT.checks, *SPEED.checks]:
        if check.name not in CHECKS:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = f"returned: {check.run(Pretended(Path(folder), 'cpu', True, None, {}))}"
            except (Skip, Wrong) as error:
                found = f"said: {error}"
        print(f"{check.name}  {found.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
