"""How far the device is, and how long it took: events on its stream, which the host looks at and never waits for."""

import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_STALE_S = 15.0  # a look that has not come back for so long may not be believed


class DevicePlace(NamedTuple):
    """How far a device has come: steps done, and the marks of the next one that it has passed. Comparable."""

    step: int
    stage: int

    def __str__(self) -> str:
        following = (
            "",  # it has not begun the next step
            f" and stands before its gradients of step {self.step + 1} are ready",
            f" and waits for the sum of the gradients of step {self.step + 1}",
            f" and stands after the sum of the gradients of step {self.step + 1}",
        )
        return f"has done step {self.step}{following[self.stage]}"


@dataclass
class _Step:
    """Where a step begins and ends on the device, and where the last gradients were ready and had come back summed."""

    begun: Any  # four torch.cuda.Event; None: not issued yet, or, of the middle ones, nothing was exchanged
    ready: Any = None
    summed: Any = None
    ended: Any = None


class DeviceClock:
    """Marks a rank's steps on its GPU, four events each.

    Between the last bucket of gradients and the end of the backward the device only waits: for the slowest rank, and
    for the network. All the rest of a step is this rank's own time, pauses in which the host gave it nothing included.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[_Step] = []  # since the last log point, the one that is being issued included
        self.done = 0  # steps done by then
        self.seen, self.seen_at = DevicePlace(0, 0), time.monotonic()  # what the last look found, and when

    def enter(self, phase: str) -> None:
        """The host begins a phase of a step (see train_step); what it has issued before lies before the mark."""
        step = self.steps[-1] if self.steps and self.steps[-1].ended is None else None
        if phase == "data" and step is None:
            self.steps.append(_Step(_mark()))
        elif step is None:
            return
        elif phase == "gradient sync":  # once a bucket: the last one stands
            if step.ready is None:
                step.ready = _mark()
            else:
                step.ready.record()
        elif phase == "statistics" and step.ready is not None:
            step.summed = _mark()

    def step_issued(self, number: int) -> None:
        """The host has issued the last operation of the step; `number` steps are issued now."""
        if self.steps and self.steps[-1].ended is None:
            self.steps[-1].ended = _mark()
        else:  # a run goes on from there
            self.done = number

    def look(self) -> DevicePlace:
        """Ask the events how far the device has come.

        A call of CUDA may stand still while another thread stands in one, as the main thread does where the device
        has been given as much as it takes: for a thread that nobody waits for, as that of `keep_looking`.
        """
        done, steps = self.done, tuple(self.steps)
        for step in steps:
            if step.ended is None or not step.ended.query():
                marks = [mark for mark in (step.begun, step.ready, step.summed) if mark is not None]
                return DevicePlace(done, next((i for i, mark in enumerate(marks) if not mark.query()), len(marks)))
            done += 1
        return DevicePlace(done, 0)

    def keep_looking(self, until: threading.Event, pause_s: float) -> None:
        """Look again and again, until the event is set or the device has failed. In a thread of its own."""
        torch.cuda.set_device(self.device)  # CUDA would open a context on GPU 0 for this thread: 0.5 GB for nothing
        try:
            while not until.wait(pause_s):
                self.seen = self.look()
                self.seen_at = time.monotonic()
        except RuntimeError:  # the main thread meets it too, and says what it is
            return

    def place(self) -> DevicePlace | None:
        """How far the device has come, as last seen; None if that is not known. No call of CUDA: from any thread."""
        return self.seen if time.monotonic() - self.seen_at < _STALE_S else None

    def busy_s(self) -> float:
        """Own seconds of the device in the steps since the last call, all of which are issued and done."""
        total = 0.0
        for step in self.steps:
            total += step.begun.elapsed_time(step.ended)
            if step.summed is not None:
                total -= step.ready.elapsed_time(step.summed)
        # In this order: a look between the two would find steps done twice, if it were the other one.
        done, self.steps = self.done + len(self.steps), []
        self.done = done
        return total / 1000


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
