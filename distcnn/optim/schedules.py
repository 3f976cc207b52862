"""Learning-rate schedules: pure functions of the step, nothing to step and nothing to save."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from distcnn.config.plan import Plan, to_steps
from distcnn.config.schema import Config, Duration, Float, parse_duration
from distcnn.errors import InputError
from distcnn.optim import SCHEDULES
from distcnn.registry import Problem, checked_by

Factor = Callable[[int], float]  # step, from 0 on → the rate as a share of its peak
Final = Annotated[Float, Field(ge=0, le=1, description="the last rate as a share of the peak")]


@dataclass(frozen=True)
class Span:
    """What a schedule goes over: `steps` in all, of which the first `warmup` rise to the peak and are not its own."""

    steps: int
    warmup: int
    in_steps: Callable[[str], int]  # of a duration such as 5ep


class Schedule:
    """The learning rate of each step of a run."""

    def __init__(self, config: Config, plan: Plan):
        """Raises InputError for a warm-up that leaves nothing of the run."""
        in_steps = partial(to_steps, batch_size=plan.batch_size, steps_per_epoch=plan.steps_per_epoch)
        self.peak, self.warmup = plan.lr, in_steps(config.schedule.warmup)
        if self.warmup >= plan.steps > 0 and self.warmup > 0:
            raise InputError(
                f"schedule.warmup = {config.schedule.warmup}, train.duration = {config.train.duration}: a warm-up of "
                f"{self.warmup} steps leaves nothing of {plan.steps}"
            )
        span = Span(plan.steps, self.warmup, in_steps)
        self.factor: Factor = SCHEDULES.build(config.schedule.name, config.schedule.args, span)

    def lr_at(self, step: int) -> float:
        """The rate of update number `step`, 0 ≤ step < steps. The last update still has a rate above the final one."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        return self.peak * self.factor(step)


def constant(span: Span) -> Factor:  # noqa: ARG001
    """Hold the peak."""
    return lambda step: 1.0  # noqa: ARG005


def linear(span: Span, *, final: Final = 0.0) -> Factor:
    """Fall on a straight line to `final`."""
    return lambda step: 1 + (final - 1) * (step - span.warmup) / (span.steps - span.warmup)


def cosine(span: Span, *, final: Final = 0.0) -> Factor:
    """Fall along half a cosine to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""
    return lambda step: _cosine(1.0, final, (step - span.warmup) / (span.steps - span.warmup))


def _has_milestones(_: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if not args["milestones"]:
        yield ("schedule.name", "schedule.args.milestones"), "the step schedule needs some, for example [5ep, 8ep]"


@checked_by(_has_milestones)
def step(
    span: Span,
    *,
    milestones: Annotated[tuple[Duration, ...], Field(description="when to multiply the rate by gamma")] = (),
    gamma: Annotated[Float, Field(gt=0, le=1, description="the factor")] = 0.1,
) -> Factor:
    """Multiply the rate by `gamma` at each milestone, counted from the start of the run."""
    places = sorted(map(span.in_steps, milestones))
    return lambda step: float(gamma ** bisect_right(places, step))


def _has_no_warmup(config: Config, _: Mapping[str, Any]) -> Iterator[Problem]:
    if parse_duration(config.schedule.warmup)[0] > 0:
        yield ("schedule.warmup", "schedule.name"), "onecycle has its own warm-up: set schedule.args.rise instead"


@checked_by(_has_no_warmup)
def onecycle(
    span: Span,
    *,
    rise: Annotated[Float, Field(gt=0, lt=1, description="share of the steps before the peak")] = 0.3,
    initial: Annotated[Float, Field(gt=0, le=1, description="the first rate as a share of the peak")] = 0.04,
    final: Final = 0.0,
) -> Factor:
    """Rise from `initial` to the peak and fall to `final` (Smith and Topin 2017, arXiv:1708.07120).

    Both flanks are cosines, as in fastai and in PyTorch's OneCycleLR.
    """
    top = rise * span.steps

    def factor(step: int) -> float:
        if step < top:
            return _cosine(initial, 1.0, step / top)
        return _cosine(1.0, final, (step - top) / (span.steps - top))

    return factor


def _cosine(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine, for `done` in 0…1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
