"""Runs what `build` has made: what the command line and the Python API both call."""

import os
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from distcnn.checkpoint.file import Checkpoints, step_of
from distcnn.checkpoint.state import Checkpoint, Progress
from distcnn.checkpoint.weights import save_safetensors
from distcnn.checkpoint.writer import CheckpointWriter
from distcnn.config.plan import Plan
from distcnn.config.schema import Config, OptimConfig
from distcnn.config.settings import to_dict, to_yaml
from distcnn.config.tree import diff
from distcnn.data.loaders.evaluation import EvaluationLoader
from distcnn.distributed.collectives import on_main
from distcnn.distributed.device import backend_of, slow_precision
from distcnn.distributed.memory import explain_out_of_memory, first_out_of_memory_of_all_ranks
from distcnn.distributed.network import describe_network
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.signals import StopRequest
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.errors import DistcnnError, InputError, OutOfMemoryError, StoppedError
from distcnn.files import atomic_file
from distcnn.optim.optimizers import make_optimizer, regrouped
from distcnn.report import page as report_page
from distcnn.runs import environment
from distcnn.runs.folder import run_folder, run_id
from distcnn.runs.predictions import select_predictions, write_predictions
from distcnn.runs.records import event
from distcnn.tracking.backend import TrackedRun
from distcnn.tracking.base import Trackers
from distcnn.tracking.open import open_trackers
from distcnn.training.averaging import Averages
from distcnn.training.build import Parts, check_alike, make_engine, make_loader, prepare, training_cures
from distcnn.training.evaluate import Evaluation, evaluate_on
from distcnn.training.loop import fit
from distcnn.training.summary import summary_fields


@dataclass(frozen=True)
class Result:
    """What a training leaves behind."""

    folder: Path
    plan: Plan
    state: Progress
    evaluation: Evaluation  # of the final weights


def train(config: Config, world: World, stop: StopRequest | None = None) -> Result:
    """Train as configured; on every rank alike.

    Raises InputError for what the user can mend, StoppedError after a signal that `stop` has noted and all ranks agreed
    on, DistcnnError for a run that failed.
    """
    parts, stop = prepare(config, world), stop or StopRequest()
    plan, model = parts.plan, parts.model
    enough_memory = partial(explain_out_of_memory, parts.device, lambda: training_cures(config, parts))
    with (
        process_group(
            world, device=parts.device, backend=backend_of(config, parts.device), timeout_s=config.train.timeout
        ) as store,
        first_out_of_memory_of_all_ranks(store),
        enough_memory(),
        ExitStack() as held,
    ):
        step = parts.checkpoint.progress.step if parts.checkpoint else 0
        check_alike(config, world, plan, step)
        folder = on_main(lambda: held.enter_context(run_folder(config)), "rank 0 to make the run's folder")
        config = replace(config, name=folder.name)
        engine, loader = make_engine(config, world, parts), make_loader(config, world, parts)
        test = EvaluationLoader(parts.test_data, config.eval.batch_size, loader.preprocess, world.rank, world.size)
        state = Progress()
        if parts.checkpoint:
            try:
                before = OptimConfig(**parts.checkpoint.config["optim"])
                optimizer = parts.checkpoint.optimizer
                if before != config.optim:  # whose groups may be others
                    optimizer = regrouped(optimizer, make_optimizer(model, before, 1.0), parts.optimizer)
                with enough_memory():  # its RuntimeError is none of these below
                    engine.load_state_dict({"optimizer": optimizer, "scaler": parts.checkpoint.scaler})
            except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise InputError(f"checkpoint.resume: the optimizer's state does not fit ({error})") from error
            state = parts.checkpoint.progress
        averages = Averages(model, config.train)
        if parts.checkpoint:
            averages.load_state_dict(parts.checkpoint.averages)
        trackers = Trackers()
        watch = Watchdog(
            world, store, config.train.timeout, stop.end, parts.device, folder,
            log=lambda why: trackers.log(event("failed", state.step, why)),
        )  # fmt: skip
        watch.steps_done(state.step)
        checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep) if world.is_main else None
        told = os.environ.get("DISTCNN_GRACE", "")
        grace = int(told) if told.isdecimal() else 0
        writer = CheckpointWriter(checkpoints, trackers.log, config.checkpoint.minutes, grace)

        def open_files() -> None:
            """config.yaml and the trackers, where rank 0 has them."""
            try:
                with atomic_file(folder / "config.yaml") as file:
                    file.write_text(to_yaml(config), encoding="utf-8")
                tracked = TrackedRun(folder, run_id(folder), config, plan, state.step)
                launcher = f"{world.launcher}, {describe_network(world)}"
                trackers.trackers += open_trackers(tracked, launcher, partial(_newest_checkpoint, folder))
            except OSError as error:
                raise InputError(f"output_dir: {folder}: {error.strerror}; a run needs room to write") from error

        def evaluate_test() -> Evaluation:
            with averages.in_place():
                found = evaluate_on(model, test, config, watch)
            if world.is_main:
                with suppress(OSError):  # a full disk: it is for the report only
                    data = parts.test_data
                    kept = select_predictions(
                        state.step, data.labels, found.best, found.probabilities, data.images, data.files
                    )
                    write_predictions(folder / "predictions.npz", kept)
            return found

        def checkpoint() -> Checkpoint:
            data = parts.train_data
            return Checkpoint(
                model.state_dict(), **engine.state_dict(), averages=averages.state_dict(), progress=state,
                config=to_dict(config), plan=plan, classes=data.classes, image_size=data.images.shape[1],
                normalize=parts.normalize,
            )  # fmt: skip

        def save(state: Progress, best: bool, wait: bool) -> str:
            if world.is_main:
                writer.save(checkpoint().to_dict(), state.step, best=best)
            return on_main(writer.wait, "rank 0 to write the checkpoint") if wait else ""

        stop.begin(config.train.timeout)
        name, message = ("resumed", _resumed(parts, state)) if parts.checkpoint else ("started", f"{plan.steps} steps")
        known = {"launcher": world.launcher, **environment.described(), "plan": asdict(plan)}
        on_main(open_files, "rank 0 to open its trackers")
        trackers.log(event(name, state.step, message) | {"environment": known})
        if advice := slow_precision(config, parts.device):
            trackers.log(event("slow_precision", state.step, advice))
        try:
            with watch, first_out_of_memory_of_all_ranks(store), enough_memory():  # the log below holds what it says
                evaluation = fit(
                    engine, loader, plan, parts.schedule, state, trackers.log,
                    evaluate=evaluate_test, save=save, save_due=writer.due, stop=stop, watch=watch,
                    averages=averages,
                    label_smoothing=config.train.label_smoothing, log_every=config.tracking.log_every,
                )  # fmt: skip
                if evaluation is None:  # the checkpoint was that of the end
                    evaluation = evaluate_test()
        except StoppedError as error:
            trackers.log(event("stopped", state.step, str(error)) | {"exit_code": error.exit_code})
            trackers.finish("stopped", {"step": f"{state.step} of {plan.steps}"})
            # A launcher ends all ranks when the first one ends: none does before rank 0 has written all it has.
            on_main(lambda: None, "rank 0 to write its last records")
            raise
        except BaseException as error:
            lines = f"{type(error).__name__}: {error}".splitlines()
            said = "; ".join(lines if isinstance(error, OutOfMemoryError) else lines[:1])
            trackers.log(event("failed", state.step, said))
            trackers.finish(type(error).__name__, {"step": state.step})
            raise

        def write_weights() -> list[str]:
            """The model, beside its checkpoint; returns what could not be written."""
            lost = [f"the checkpoint of step {state.step}, which {writer.problem}"] if writer.problem else []
            try:
                with averages.in_place():
                    final = checkpoint()
                    save_safetensors(folder / "model.safetensors", final.model, final.description)
            except OSError as error:
                lost.append(f"model.safetensors ({error})")
            return lost

        lost = on_main(write_weights, "rank 0 to write the weights")
        status, message = ("failed", f"could not write {'; '.join(lost)}") if lost else ("done", "")
        trackers.log(event(status, state.step, message or f"{evaluation.accuracy:.2%}"))
        report = {"report": folder / "report.html"} if config.tracking.report and not report_page.missing() else {}
        lost += trackers.finish(status, summary_fields(evaluation, state, plan, folder) | report)
        if lost:
            raise DistcnnError(f"trained to the end, step {state.step}, but could not write {'; '.join(lost)}")
        return Result(folder, plan, state, evaluation)


def _newest_checkpoint(folder: Path) -> str:
    return next((f"step {step_of(path)}" for path in Checkpoints(folder / "checkpoints").all()), "")


def _resumed(parts: Parts, state: Progress) -> str:
    assert parts.checkpoint is not None
    keys = ("world_size", "micro_batch", "accumulation", "threads", "device")
    before, now = ({key: asdict(plan)[key] for key in keys} for plan in (parts.checkpoint.plan, parts.plan))
    changed = "".join(f"; {change}" for change in diff(before, now))
    aside = f"; damaged and left aside: {', '.join(path.name for path in parts.damaged)}" if parts.damaged else ""
    return f"at step {state.step} of {parts.plan.steps}{changed}{aside}"
