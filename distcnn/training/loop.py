"""The training loop. Read `fit` top to bottom: one epoch, one step, one micro-batch at a time."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F

from distcnn.checkpoint.state import Progress
from distcnn.config.plan import Plan
from distcnn.data.loaders.batch import Batch
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.distributed.collectives import stack_ranks
from distcnn.distributed.signals import StopRequest, stopped
from distcnn.distributed.watchdog import Watchdog
from distcnn.engine.base import Engine
from distcnn.errors import NonFiniteLossError
from distcnn.optim.optimizers import set_lr
from distcnn.optim.schedules import Schedule
from distcnn.runs.records import Record, event
from distcnn.training.averaging import Averages
from distcnn.training.batchnorm import RunningStatistics
from distcnn.training.evaluate import Evaluation
from distcnn.training.host_bound import HostBound


class Watch(Protocol):
    """Is told what a step does next: a Watchdog, or a stopwatch."""

    def enter(self, phase: str) -> None:
        """Something else begins."""


def fit(
    engine: Engine,
    loader: ResidentLoader | StreamingLoader,
    plan: Plan,
    schedule: Schedule,
    state: Progress,
    log: Callable[[Record], None],
    *,
    evaluate: Callable[[], Evaluation],
    save: Callable[[Progress, bool, bool], str],
    save_due: Callable[[], bool],
    stop: StopRequest,
    watch: Watchdog,
    averages: Averages,
    label_smoothing: float = 0.0,
    log_every: int = 10,
) -> Evaluation | None:
    """Train from `state.step` to `plan.steps`; returns the last evaluation, None if nothing was left to do.

    All ranks call it and do the same: only what `log` and `save` do inside differs by rank. `save(state, best, wait)`
    returns, where it is to wait, what went wrong, on all ranks alike. A signal to any rank ends it after a step, on
    all ranks with StoppedError, the step saved.
    """
    running = RunningStatistics(engine.computed, plan.accumulation * plan.world_size)
    host_bound = HostBound(plan, streaming=isinstance(loader, StreamingLoader))
    losses = StepLosses(plan, schedule, state, log, watch, host_bound)
    evaluation = None
    engine.computed.train()
    while state.step < plan.steps:
        epoch, first_step = divmod(state.step, plan.steps_per_epoch)
        batches = loader.epoch(epoch, first_step)
        for _ in range(first_step, plan.steps_per_epoch):
            lr = schedule.lr_at(state.step)
            losses.add(train_step(engine, batches, running, lr, label_smoothing, watch))
            state.step += 1
            watch.steps_done(state.step)

            last = state.step == plan.steps
            averages.after_step(state.step, last=last)
            evaluating = last or state.step % plan.eval_every == 0
            watch.enter("agreement")
            signal, due = stop.agreed(save_due())
            saving = last or bool(signal) or due or state.step % plan.checkpoint_every == 0
            if evaluating or saving or losses.count == log_every:
                watch.enter("log")
                losses.flush()  # raises on all ranks if any loss was not finite: nothing after it is kept
            improved = False
            if evaluating:
                watch.enter("evaluation")
                evaluation = evaluate()
                improved = evaluation.accuracy > state.best_accuracy
                if improved:
                    state.best_accuracy, state.best_step = evaluation.accuracy, state.step
                epochs = -(-state.step // plan.steps_per_epoch)
                log(
                    {
                        "kind": "eval",
                        "split": evaluation.split,
                        "step": state.step,
                        "epoch": epochs,
                        **evaluation.record(),
                    }
                )
            trouble = ""
            if saving or improved:
                watch.enter("checkpoint")
                trouble = save(state, improved, last or bool(signal))
            if evaluating or saving:
                losses.restart_clock()
            if last:
                break
            if signal:
                raise stopped(signal, f"after step {state.step} of {plan.steps}, which {trouble or 'is saved'}")
    running.close()
    return evaluation


def train_step(
    engine: Engine,
    batches: Iterator[Batch],
    running: RunningStatistics,
    lr: float,
    label_smoothing: float,
    watch: Watch,
) -> torch.Tensor:
    """One update from one global batch. Returns this rank's part of its mean loss, [] float32, on the device."""
    engine.sums.enter = watch.enter  # gradients are exchanged in the midst of a backward
    loss_part = torch.zeros((), device=engine.device)
    engine.begin()
    watch.enter("data")
    for batch in batches:
        watch.enter("forward")
        # Dropout and the like depend on the place in the epoch alone: not on the rank, nor on what ran before.
        seed_generators(batch.seed, engine.device)
        with engine.accumulate(sync=batch.last):
            with engine.autocast():
                logits = engine.forward(batch.images)  # [n, classes]
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=label_smoothing) * batch.weight
            watch.enter("backward")
            engine.backward(loss, sync=batch.last)
        watch.enter("statistics")
        running.add(batch.weight)
        loss_part += loss.detach()
        if batch.last:
            break
        watch.enter("data")
    running.end()
    watch.enter("optimizer")
    set_lr(engine.optimizer, lr)
    engine.step()
    return loss_part


def seed_generators(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and one device, not for all other kinds: that takes 0.1 ms and more."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class StepLosses:
    """Each step's loss stays on the device until a log point, where all ranks meet once for all steps since.

    They tell each other too how long they were busy: all but the time, by `watch`, that they stood still for others.
    On a GPU it is the device's time that counts: the host only runs ahead of it.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        state: Progress,
        log: Callable[[Record], None],
        watch: Watchdog,
        host_bound: HostBound,
    ):
        self.plan, self.schedule, self.state, self.log = plan, schedule, state, log
        self.parts: list[torch.Tensor] = []
        self.watch, self.host_bound = watch, host_bound
        self.restart_clock()

    @property
    def count(self) -> int:
        """Steps since the last log point."""
        return len(self.parts)

    def add(self, part: torch.Tensor) -> None:
        """Keep this rank's part of one step's loss."""
        self.parts.append(part)

    def restart_clock(self) -> None:
        """Leave the time since the last log point (evaluation, saving) out of the throughput."""
        self.started, self.waited_before = time.perf_counter(), self.watch.waited_s
        self.data_before = self.watch.data_s

    def flush(self) -> None:
        """Log every step since the last time. Raises NonFiniteLossError on all ranks at the first bad one."""
        if not self.parts:
            return
        others_s = self.watch.waited_s - self.waited_before
        busy_s = time.perf_counter() - self.started - others_s
        own = torch.stack(self.parts)
        on_device = self.watch.device.type == "cuda"
        device_s = self.watch.wait_for_device()  # the one wait for it
        if on_device:  # what is read then is complete, and goes from host to host
            busy_s, own = self.watch.device_busy_s(), own.cpu()
        by_rank = stack_ranks(torch.cat([own, own.new_tensor([busy_s])])).double()  # [world, steps + 1]
        seconds = time.perf_counter() - self.started
        busy = by_rank[:, -1].tolist()
        first = self.state.step - len(self.parts)
        images = sum(self._images(first + i) for i in range(len(self.parts)))
        for i, loss in enumerate(by_rank[:, :-1].sum(dim=0).tolist()):
            step = first + i
            epoch, lr = step // self.plan.steps_per_epoch + 1, self.schedule.lr_at(step)
            bad = [rank for rank, part in enumerate(by_rank[:, i].tolist()) if not _finite(part)]
            if bad:
                rank = f"rank {bad[0]}" if len(bad) == 1 else f"ranks {', '.join(map(str, bad))}"
                value = by_rank[bad[0], i].item()
                message = f"the loss is {value} at step {step + 1} (epoch {epoch}) on {rank}, learning rate {lr:.3g}"
                self.log(event("non_finite_loss", step + 1, message))
                raise NonFiniteLossError(message + "; all ranks stopped there, and nothing later was saved")
            record: Record = {
                "kind": "train",
                "step": step + 1,
                "epoch": epoch,
                "loss": loss,
                "lr": lr,
            }
            if len(busy) > 1:
                record["slowest_rank"], record["rank_spread"] = (
                    busy.index(max(busy)),
                    max(busy) / max(min(busy), 1e-9) - 1,
                )
            self.log({**record, "images_per_s": images / seconds})
        if on_device and (message := self.host_bound.log_point(seconds, device_s, others_s, self._data_s())):
            self.log(event("host_bound", self.state.step, message))
        self.parts.clear()
        self.restart_clock()

    def _data_s(self) -> float:
        return self.watch.data_s - self.data_before

    def _images(self, step: int) -> int:
        done = step % self.plan.steps_per_epoch * self.plan.batch_size
        return min(self.plan.batch_size, self.plan.train_images - done)


def _finite(value: float) -> bool:
    return value - value == 0
