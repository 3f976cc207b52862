"""Learning-rate schedules: pure functions of the step."""

import math
from bisect import bisect_right

from distcnn.config.plan import Plan, to_steps
from distcnn.config.schema import Config
from distcnn.errors import InputError


class Schedule:
    """The learning rate as a pure function of the step: nothing to step, nothing to save."""

    def __init__(self, config: Config, plan: Plan):
        def in_steps(duration: str) -> int:
            return to_steps(duration, plan.batch_size, plan.steps_per_epoch)

        self.schedule, self.peak, self.steps = config.schedule, plan.lr, plan.steps
        self.warmup = in_steps(config.schedule.warmup)
        self.milestones = sorted(in_steps(milestone) for milestone in config.schedule.milestones)
        if self.warmup >= self.steps > 0 and self.warmup > 0:
            raise InputError(
                f"schedule.warmup = {config.schedule.warmup}, train.duration = {config.train.duration}: a warm-up of "
                f"{self.warmup} steps leaves nothing of {self.steps}"
            )

    def lr_at(self, step: int) -> float:
        """The rate of update number `step`, 0 ≤ step < steps. The last update still has a rate above `final`."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        return self.peak * self._factor(step)

    def _factor(self, step: int) -> float:
        schedule = self.schedule
        if schedule.name == "constant":
            return 1.0
        if schedule.name == "step":
            return float(schedule.gamma ** bisect_right(self.milestones, step))
        if schedule.name == "linear":
            return 1 + (schedule.final - 1) * (step - self.warmup) / (self.steps - self.warmup)
        if schedule.name == "cosine":
            return _cosine(1.0, schedule.final, (step - self.warmup) / (self.steps - self.warmup))
        # onecycle: Smith and Topin 2017 (arXiv:1708.07120), with cosine flanks as in fastai and PyTorch
        top = schedule.rise * self.steps
        if step < top:
            return _cosine(schedule.initial, 1.0, step / top)
        return _cosine(1.0, schedule.final, (step - top) / (self.steps - top))


def _cosine(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine, for `done` in 0…1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
