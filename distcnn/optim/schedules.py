"""Learning-rate schedules as pure functions of the step, without state to advance or save."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from distcnn.config.plan import Plan, to_steps
from distcnn.config.schema import Config
from distcnn.config.types import Duration, Float, parse_duration
from distcnn.errors import InputError
from distcnn.optim import SCHEDULES
from distcnn.registry import Problem, checked_by

Factor = Callable[[int], float]  # step, from 0 on → the rate as a fraction of the peak
Final = Annotated[Float, Field(ge=0, le=1, description="final rate as a fraction of the peak")]


@dataclass(frozen=True)
class Span:
    """The steps of a run: `steps` in total, of which the schedule covers those after the first `warmup`."""

    steps: int
    warmup: int
    in_steps: Callable[[str], int]  # converts a duration such as 5ep


class Schedule:
    """The learning rate of each step of a run."""

    def __init__(self, config: Config, plan: Plan):
        """Raise InputError if the warm-up is as long as the run."""
        in_steps = partial(to_steps, batch_size=plan.batch_size, steps_per_epoch=plan.steps_per_epoch)
        self.peak, self.warmup = plan.lr, in_steps(config.schedule.warmup)
        if self.warmup >= plan.steps > 0 and self.warmup > 0:
            raise InputError(
                f"schedule.warmup = {config.schedule.warmup}, train.duration = {config.train.duration}: a warm-up of "
                f"{self.warmup} steps leaves none of the {plan.steps} steps for the schedule"
            )
        span = Span(plan.steps, self.warmup, in_steps)
        self.factor: Factor = SCHEDULES.build(config.schedule.name, config.schedule.args, span)

    def lr_at(self, step: int) -> float:
        """Return the rate of update `step`, 0 ≤ step < steps; the final rate would be that of update `steps`."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        return self.peak * self.factor(step)


def constant(span: Span) -> Factor:  # noqa: ARG001
    """Keep the peak rate."""
    return lambda step: 1.0  # noqa: ARG005


def linear(span: Span, *, final: Final = 0.0) -> Factor:
    """Decay linearly to `final`."""
    return lambda step: 1 + (final - 1) * (step - span.warmup) / (span.steps - span.warmup)


def cosine(span: Span, *, final: Final = 0.0) -> Factor:
    """Decay along half a cosine to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""
    return lambda step: _cosine(1.0, final, (step - span.warmup) / (span.steps - span.warmup))


def _check_step(_: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if not args["milestones"]:
        yield ("schedule.name", "schedule.args.milestones"), "required by the step schedule, for example [5ep, 8ep]"


@checked_by(_check_step)
def step(
    span: Span,
    *,
    milestones: Annotated[tuple[Duration, ...], Field(description="when to multiply the rate by gamma")] = (),
    gamma: Annotated[Float, Field(gt=0, le=1, description="factor at each milestone")] = 0.1,
) -> Factor:
    """Multiply the rate by `gamma` at each milestone, counted from the start of the run."""
    steps = sorted(map(span.in_steps, milestones))
    return lambda step: float(gamma ** bisect_right(steps, step))


def _check_onecycle(config: Config, _: Mapping[str, Any]) -> Iterator[Problem]:
    if parse_duration(config.schedule.warmup)[0] > 0:
        yield ("schedule.warmup", "schedule.name"), "onecycle has its own warm-up: set schedule.args.rise instead"


@checked_by(_check_onecycle)
def onecycle(
    span: Span,
    *,
    rise: Annotated[Float, Field(gt=0, lt=1, description="fraction of the steps before the peak")] = 0.3,
    initial: Annotated[Float, Field(gt=0, le=1, description="initial rate as a fraction of the peak")] = 0.04,
    final: Final = 0.0,
) -> Factor:
    """Rise from `initial` to the peak, then decay to `final` (Smith and Topin 2017, arXiv:1708.07120).

    Both phases are cosines, as in fastai and in PyTorch's OneCycleLR.
    """
    top = rise * span.steps

    def factor(step: int) -> float:
        if step < top:
            return _cosine(initial, 1.0, step / top)
        return _cosine(1.0, final, (step - top) / (span.steps - top))

    return factor


def _cosine(start: float, end: float, done: float) -> float:
    """Interpolate from start to end along half a cosine, for `done` in 0…1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
