"""Progress and busy time of the device, by events on its stream that the host queries and never waits for."""

import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_STALE_S = 15.0  # the age from which the last known place is ignored


class DevicePlace(NamedTuple):
    """Progress of a device: steps done, and events of the next step passed. Ordered."""

    step: int
    stage: int

    def __str__(self) -> str:
        following = (
            "",  # it has not begun the next step
            f" and has not finished the gradients of step {self.step + 1}",
            f" and is waiting for the all-reduce of the gradients of step {self.step + 1}",
            f" and is past the all-reduce of the gradients of step {self.step + 1}",
        )
        return f"has done step {self.step}{following[self.stage]}"


@dataclass
class _Step:
    """Events of a step: its begin and end, and the last gradients ready for, and back from, the all-reduce."""

    begun: Any  # torch.cuda.Event each; None: not issued yet, or no all-reduce
    ready: Any = None
    summed: Any = None
    ended: Any = None


class DeviceClock:
    """Records four events per step on a rank's GPU.

    Between the last bucket of gradients and the end of the backward the device only waits: for the slowest rank, and
    for the network. The rest of a step is this rank's own time, including pauses in which the host issued nothing.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[_Step] = []  # since the last log point, including the one being issued
        self.done = 0  # steps done before them
        self.seen, self.seen_at = DevicePlace(0, 0), time.monotonic()  # by the last look, and when

    def enter(self, phase: str) -> None:
        """Note that the host begins a phase of a step (see train_step), and record its event."""
        step = self.steps[-1] if self.steps and self.steps[-1].ended is None else None
        if phase == "data" and step is None:
            self.steps.append(_Step(_mark()))
        elif step is None:
            return
        elif phase == "gradient sync":  # once per bucket: the last one counts
            if step.ready is None:
                step.ready = _mark()
            else:
                step.ready.record()
        elif phase == "statistics" and step.ready is not None:
            step.summed = _mark()

    def step_issued(self, number: int) -> None:
        """Note that the host has issued all of the step, the `number`th."""
        if self.steps and self.steps[-1].ended is None:
            self.steps[-1].ended = _mark()
        else:  # a run resumes there
            self.done = number

    def look(self) -> DevicePlace:
        """Query the events for the device's place.

        May block while another thread is blocked in CUDA, as the main thread is when the launch queue is full: call it
        from a thread that nothing waits for, as that of `keep_looking`.
        """
        done, steps = self.done, tuple(self.steps)
        for step in steps:
            if step.ended is None or not step.ended.query():
                marks = [mark for mark in (step.begun, step.ready, step.summed) if mark is not None]
                return DevicePlace(done, next((i for i, mark in enumerate(marks) if not mark.query()), len(marks)))
            done += 1
        return DevicePlace(done, 0)

    def keep_looking(self, until: threading.Event, pause_s: float) -> None:
        """Look every `pause_s` seconds until the event is set or the device fails. Runs in its own thread."""
        torch.cuda.set_device(self.device)  # otherwise this thread would open a context on GPU 0, of 0.5 GB
        try:
            while not until.wait(pause_s):
                self.seen = self.look()
                self.seen_at = time.monotonic()
        except RuntimeError:  # the main thread gets and reports it too
            return

    def place(self) -> DevicePlace | None:
        """Return the device's place as last seen; None if unknown. Calls no CUDA, so safe from any thread."""
        return self.seen if time.monotonic() - self.seen_at < _STALE_S else None

    def busy_s(self) -> float:
        """Return the device's own seconds in the steps since the last call, all of which must be done."""
        total = 0.0
        for step in self.steps:
            total += step.begun.elapsed_time(step.ended)
            if step.summed is not None:
                total -= step.ready.elapsed_time(step.summed)
        # In this order: otherwise a concurrent look would count the steps twice.
        done, self.steps = self.done + len(self.steps), []
        self.done = done
        return total / 1000


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
