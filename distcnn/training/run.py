"""Run: one training as an object, its components and its life from the rendezvous to the last record."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Self

from distcnn.checkpoint.resume import find_checkpoint
from distcnn.checkpoint.state import Checkpoint, Progress
from distcnn.checkpoint.writer import CheckpointWriter
from distcnn.config.plan import Plan, Workload
from distcnn.config.schema import Config, OptimConfig
from distcnn.config.settings import to_dict
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.evaluation import EvaluationLoader
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.distributed.collectives import on_main
from distcnn.distributed.device import backend_of, set_up_device
from distcnn.distributed.memory import explain_out_of_memory, first_out_of_memory_of_all_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.stop import StopRequest
from distcnn.distributed.watch import Watch
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.engine.base import Engine
from distcnn.errors import InputError, OutOfMemoryError, StoppedError
from distcnn.optim.optimizers import make_optimizer, regrouped
from distcnn.optim.schedules import Schedule
from distcnn.runs.folder import run_folder
from distcnn.runs.predictions import PREDICTIONS, select_predictions, write_predictions
from distcnn.runs.records import Record, event
from distcnn.tracking.base import Trackers
from distcnn.training import build
from distcnn.training.averaging import Averages
from distcnn.training.batchnorm import RunningStatistics
from distcnn.training.evaluate import Evaluation, evaluate_on
from distcnn.training.metrics.build import Metric, build_metrics
from distcnn.training.start_and_end import begin, finish

_ALONE = (
    "so far this run has allocated only the network and the optimizer's state: is another process using the device?"
)


class Run:
    """One training as configured, on this rank; every rank has one, and all call the same methods in the same order.

    `Run(config, world)` reads the data and builds what needs no communication; it raises InputError. `with run:` forms
    the process group, creates the run's folder, opens its trackers and resumes from its checkpoint; on exit it writes
    the weights and finishes the trackers with "done", "stopped", or the name of the exception. To measure steps only,
    use `connected` and `build` instead: no folder, no watchdog, no records.
    """

    # What and where
    config: Config
    world: World
    device: torch.device
    plan: Plan
    workload: Workload
    images: build.Images

    # Components
    model: nn.Module  # unwrapped
    optimizer: Optimizer
    schedule: Schedule
    loss: build.Loss
    metrics: tuple[Metric, ...]  # of an evaluation
    engine: Engine
    statistics: RunningStatistics  # BatchNorm's
    averages: Averages  # of the weights
    pipeline: Pipeline  # the augmentation
    loader: ResidentLoader | StreamingLoader
    test_loader: EvaluationLoader

    # Progress
    progress: Progress
    evaluation: Evaluation | None  # the newest
    resumed: Checkpoint | None  # the checkpoint to resume from; None once it is restored
    damaged: list[Path]  # newer checkpoints that were skipped

    # Services
    stop: StopRequest
    store: Any  # of the process group; None for a single rank
    watch: Watch
    folder: Path
    trackers: Trackers
    writer: CheckpointWriter
    _life: AbstractContextManager[None]  # between __enter__ and __exit__

    def __init__(self, config: Config, world: World, stop: StopRequest | None = None):
        self.config, self.world, self.stop = config, world, stop or StopRequest()
        self.device, _ = set_up_device(config, world)
        self.images = build.read_images(config, world, self.device)
        model = build.build_network(config, self.images)
        self.plan = build.build_plan(config, world, self.images)
        self.workload = build.workload(config, self.images, model, self.device)
        self.schedule = Schedule(config, self.plan)
        self.pipeline = build.augmentation(config, self.plan, self.images, model)
        self.resumed, self.damaged = find_checkpoint(config, self.plan, model)
        with explain_out_of_memory(self.device, lambda: [_ALONE]):
            self.model = build.place_model(model, config, world, self.device)
            self.optimizer = make_optimizer(self.model, config.optim, self.plan.lr)
        classes = len(self.images.train.classes)
        self.loss = build.build_loss(config, classes, self.device)
        self.metrics = build_metrics(config.eval, classes, self.device)
        self.progress = self.resumed.progress if self.resumed else Progress()
        self.evaluation = None
        self.store, self.watch, self.trackers = None, Watch(self.device), Trackers()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Context of the process group. Raises DistcnnError if the ranks were started for different runs."""
        backend, timeout_s = backend_of(self.config, self.device), self.config.train.timeout
        group = process_group(self.world, device=self.device, backend=backend, timeout_s=timeout_s)
        with group as self.store, self.enough_memory():
            build.check_alike(self.config, self.world, self.plan, self.workload, self.progress.step)
            yield

    @contextmanager
    def enough_memory(self) -> Iterator[None]:
        """Context in which running out of memory on any rank raises OutOfMemoryError, with advice, on all ranks."""

        def fixes() -> list[str]:
            return build.memory_fixes(self.config, self.plan, self.images, self.device)

        with first_out_of_memory_of_all_ranks(self.store), explain_out_of_memory(self.device, fixes):
            yield

    def build(self) -> None:
        """Build the engine, the loaders and the averages, and restore the checkpoint, if any."""
        config, plan = self.config, self.plan
        engine, options = build.engine_of(config, self.world), build.step_options(config, plan)
        self.engine = engine(self.model, self.optimizer, self.device, options, self.watch.enter)
        preprocess = build.make_preprocess(config, self.images.normalize, self.device)
        sampler = build.training_sampler(config, self.world, plan)
        self.loader = build.training_loader(config, self.images, sampler, preprocess, self.pipeline)
        self.test_loader = EvaluationLoader(
            self.images.test, config.eval.batch_size, preprocess, self.world.rank, self.world.size
        )
        self.averages = Averages(self.model, config.train)
        if self.resumed:
            self._restore(self.resumed)
        self.statistics = RunningStatistics(self.engine.compute_model, plan.micro_batches_per_step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            before, optimizer = OptimConfig(**checkpoint.config["optim"]), checkpoint.optimizer
            if before != self.config.optim:  # the parameter groups may differ
                optimizer = regrouped(optimizer, make_optimizer(self.model, before, 1.0), self.optimizer)
            with self.enough_memory():  # out of memory is a RuntimeError too
                self.engine.load_state_dict({"optimizer": optimizer, "scaler": checkpoint.scaler})
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"checkpoint.resume: the optimizer's state does not fit ({error})") from error
        self.averages.load_state_dict(checkpoint.averages)

    def __enter__(self) -> Self:
        self._life = self._lifetime()
        self._life.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        life = self._life
        # It refers to the run: the cycle would keep rank 0's store, and its port, until the next garbage collection.
        del self._life
        return life.__exit__(kind, error, trace)

    @contextmanager
    def _lifetime(self) -> Iterator[None]:
        with self.connected(), ExitStack() as held:
            self.folder = on_main(
                lambda: held.enter_context(run_folder(self.config)), "rank 0 to make the run's folder"
            )
            self.config = replace(self.config, name=self.folder.name)
            self.watch = watchdog = self._watchdog()
            self.build()
            self.writer = begin(self)
            self.resumed = None  # restored: do not keep a second copy of the tensors
            try:
                with watchdog, self.enough_memory():  # its message is logged below
                    yield
            except StoppedError as error:
                self.log(event("stopped", self.progress.step, str(error)) | {"exit_code": error.exit_code})
                self.trackers.finish("stopped", {"step": f"{self.progress.step} of {self.plan.steps}"})
                # A launcher ends all ranks when the first one exits: wait until rank 0 has written its records.
                on_main(lambda: None, "rank 0 to write its last records")
                raise
            except BaseException as error:
                lines = f"{type(error).__name__}: {error}".splitlines()
                message = "; ".join(lines if isinstance(error, OutOfMemoryError) else lines[:1])
                self.log(event("failed", self.progress.step, message))
                self.trackers.finish(type(error).__name__, {"step": self.progress.step})
                raise
            finish(self)

    def _watchdog(self) -> Watchdog:
        trackers, progress = self.trackers, self.progress

        def log(why: str) -> None:
            trackers.log(event("failed", progress.step, why))

        timeout_s = self.config.train.timeout
        watchdog = Watchdog(self.world, self.store, timeout_s, self.stop.signal.end, self.device, self.folder, log)
        watchdog.steps_done(progress.step)
        return watchdog

    def log(self, record: Record) -> None:
        """Pass a record to the trackers, which exist on rank 0."""
        self.trackers.log(record)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of a forward, in the run's precision."""
        return self.engine.autocast()

    def evaluate(self) -> Evaluation:
        """Evaluate the weights, or their moving average, on the test images. A collective; equal on all ranks."""
        with self.averages.swapped_in():
            found = evaluate_on(self.model, self.test_loader, self.config, self.watch, self.metrics)
        if self.world.is_main:
            with suppress(OSError):  # full disk: only the report needs the file
                data, step = self.images.test, self.progress.step
                kept = select_predictions(step, data.labels, found.best, found.probabilities, data.images, data.files)
                write_predictions(self.folder / PREDICTIONS, kept)
        self.evaluation = found
        return found

    def save(self, *, best: bool, wait: bool) -> str:
        """Start to write a checkpoint. With `wait`, a collective that returns the error, or "", once it is written."""
        if self.world.is_main:
            self.writer.save(self.checkpoint().to_dict(), self.progress.step, best=best)
        return on_main(self.writer.wait, "rank 0 to write the checkpoint") if wait else ""

    def checkpoint(self) -> Checkpoint:
        """The complete state of the run; its tensors are not copied."""
        data = self.images.train
        return Checkpoint(
            self.model.state_dict(), **self.engine.state_dict(), averages=self.averages.state_dict(),
            progress=self.progress, config=to_dict(self.config), plan=self.plan, workload=self.workload,
            classes=data.classes, image_size=data.images.shape[1], normalize=self.images.normalize,
        )  # fmt: skip
