"""Train records: losses are read from the device in one transfer at each log point."""

import math
import time

import torch

from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.distributed.collectives import stack_ranks
from distcnn.errors import NonFiniteLossError
from distcnn.runs.records import Record, event
from distcnn.training.host_bound import HostBound
from distcnn.training.run import Run


class StepLog:
    """Keeps the loss of each step on the device until a log point, where the ranks exchange them.

    The ranks also exchange how long they were busy, not waiting for others as measured by `run.watch`, to find the
    straggler. On a GPU this is device time, as the host runs ahead.
    """

    def __init__(self, run: Run):
        self.run = run
        self.parts: list[torch.Tensor] = []
        self.host_bound = HostBound(run.plan, streaming=isinstance(run.loader, StreamingLoader))
        self.restart_clock()

    @property
    def count(self) -> int:
        """Steps since the last log point."""
        return len(self.parts)

    def add(self, part: torch.Tensor) -> None:
        """Record this rank's part of the loss of one step."""
        self.parts.append(part)

    def restart_clock(self) -> None:
        """Exclude the time since the last log point (evaluation, saving) from the throughput."""
        watch = self.run.watch
        self.started, self.waited_before, self.data_before = time.perf_counter(), watch.waited_s, watch.data_s

    def flush(self) -> None:
        """Log all steps since the last flush. A collective. Raises NonFiniteLossError, on all ranks."""
        if not self.parts:
            return
        run, plan, watch = self.run, self.run.plan, self.run.watch
        others_s = watch.waited_s - self.waited_before
        busy_s = time.perf_counter() - self.started - others_s
        own = torch.stack(self.parts)
        on_device = watch.device.type == "cuda"
        device_s = watch.wait_for_device()  # the only synchronisation with it
        if on_device:  # complete now, and exchanged between the hosts
            busy_s, own = watch.device_busy_s(), own.cpu()
        by_rank = stack_ranks(torch.cat([own, own.new_tensor([busy_s])])).double()  # [world_size, steps + 1]
        seconds = time.perf_counter() - self.started
        first = run.progress.step - self.count + 1
        images_per_s = sum(plan.images_of(first + i) for i in range(self.count)) / seconds
        speed = _straggler(by_rank[:, -1].tolist()) | {"images_per_s": images_per_s}
        losses, parts = by_rank[:, :-1].sum(dim=0).tolist(), by_rank[:, :-1].T.tolist()
        for step, loss, of_ranks in zip(range(first, first + self.count), losses, parts, strict=True):
            self._check(step, of_ranks)
            at = {"kind": "train", "step": step, "epoch": plan.epoch_of(step)}
            run.log({**at, "loss": loss, "lr": run.schedule.lr_at(step - 1), **speed})
        data_s = watch.data_s - self.data_before
        if on_device and (message := self.host_bound.log_point(seconds, device_s, others_s, data_s)):
            run.log(event("host_bound", run.progress.step, message))
        self.parts.clear()
        self.restart_clock()

    def _check(self, step: int, parts: list[float]) -> None:
        """Log and raise NonFiniteLossError if the loss is NaN or infinite on any rank."""
        bad = [rank for rank, part in enumerate(parts) if not math.isfinite(part)]
        if not bad:
            return
        rank = f"rank {bad[0]}" if len(bad) == 1 else f"ranks {', '.join(map(str, bad))}"
        message = (
            f"the loss is {parts[bad[0]]} at step {step} (epoch {self.run.plan.epoch_of(step)}) on {rank}, learning "
            f"rate {self.run.schedule.lr_at(step - 1):.3g}"
        )
        self.run.log(event("non_finite_loss", step, message))
        raise NonFiniteLossError(message + "; all ranks stopped, and nothing after it was saved")


def _straggler(busy: list[float]) -> Record:
    """Find the straggler: the rank that was busy longest, and its slowdown relative to the fastest one."""
    if len(busy) == 1:
        return {}
    slowest = max(busy)
    return {"slowest_rank": busy.index(slowest), "rank_spread": slowest / max(min(busy), 1e-9) - 1}
