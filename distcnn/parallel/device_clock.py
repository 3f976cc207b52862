"""How far the device is, and how long it took: events on its stream, which the host looks at and never waits for."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class _Step:
    """Where a step begins and ends on the device, and where the last gradients were ready and had come back summed."""

    number: int
    begun: Any  # four torch.cuda.Event; the middle ones are None where nothing was exchanged
    ready: Any
    summed: Any
    ended: Any


class DeviceClock:
    """Marks a rank's steps on its GPU, four events each.

    Between the last bucket of gradients and the end of the backward the device only waits: for the slowest rank, and
    for the network. All the rest of a step is this rank's own time, pauses in which the host gave it nothing included.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[_Step] = []  # since the last log point
        self.done = 0  # steps known to be done by then
        self.begun: Any = None  # of the step that is being issued
        self.ready: Any = None
        self.summed: Any = None

    def enter(self, phase: str) -> None:
        """The host begins a phase of a step (see train_step); what it has issued before lies before the mark."""
        if phase == "data" and self.begun is None:
            self.begun = self._mark()
        elif phase == "gradient sync":  # once a bucket: the last one stands
            self.ready = self.ready or _event()
            self.ready.record()
        elif phase == "statistics" and self.ready is not None:
            self.summed = self._mark()

    def step_issued(self, number: int) -> None:
        """The host has issued the last operation of the step; `number` steps are issued now."""
        if self.begun is not None:
            self.steps.append(_Step(number, self.begun, self.ready, self.summed, self._mark()))
        else:  # a run goes on from there
            self.done = number
        self.begun = self.ready = self.summed = None

    def steps_done(self) -> int:
        """Steps that the device has done. From any thread, if `in_this_thread` was called there."""
        done = self.done
        for step in tuple(self.steps):
            if not step.ended.query():
                break
            done = step.number
        return done

    def busy_s(self) -> float:
        """Own seconds of the device in the steps since the last call, all of which it has done."""
        total = 0.0
        for step in self.steps:
            total += step.begun.elapsed_time(step.ended)
            if step.summed is not None:
                total -= step.ready.elapsed_time(step.summed)
            self.done = step.number
        self.steps = []
        return total / 1000

    def in_this_thread(self) -> None:
        """Make the device this thread's own: CUDA would open a context on GPU 0 for it, 0.5 GB for nothing."""
        torch.cuda.set_device(self.device)

    def _mark(self) -> Any:
        event = _event()
        event.record()
        return event


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
