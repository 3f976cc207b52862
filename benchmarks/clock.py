"""Times the steps of any training loop from outside it, so that every contender is timed by the same code."""

import time
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class StepClock:
    """Notes the time after every step of any optimizer in this process, in seconds of the machine's monotonic clock."""

    def __init__(self) -> None:
        self.times: list[float] = []
        register_optimizer_step_post_hook(self._tick)

    def _tick(self, _: Optimizer, __: Any, ___: Any) -> None:
        self.times.append(time.monotonic())  # all runs are on the CPU: there is no device to wait for

    def seconds(self, warmup: int, steps: int) -> float:
        """The time that `steps` whole steps took after the first `warmup`, with all that lay between them."""
        if len(self.times) != warmup + steps:
            raise RuntimeError(f"{len(self.times)} optimizer steps were seen, not {warmup} + {steps}")
        return self.times[-1] - self.times[warmup - 1]
