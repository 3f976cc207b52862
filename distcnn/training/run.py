"""Runs what `build` has made: what the command line and the Python API both call."""

import os
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distcnn.checkpoint.file import Checkpoints, step_of
from distcnn.checkpoint.resume import make_folder, run_id, save_weights
from distcnn.checkpoint.state import TrainState
from distcnn.checkpoint.writer import Saver
from distcnn.config.plan import Plan
from distcnn.config.schema import Config, OptimConfig
from distcnn.config.settings import to_dict, to_yaml
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
from distcnn.files import whole_file
from distcnn.optim.optimizers import make_optimizer, regrouped
from distcnn.report import page as report_page
from distcnn.runs import environment
from distcnn.runs.records import event
from distcnn.tracking.backend import TrackedRun
from distcnn.tracking.base import Trackers
from distcnn.tracking.open import open_trackers
from distcnn.training.averaging import Averages
from distcnn.training.build import Parts, check_alike, make_engine, make_loader, prepare, training_cures
from distcnn.training.evaluate import Evaluation, evaluate_on
from distcnn.training.loop import fit
from distcnn.training.predictions import save_predictions
from distcnn.training.summary import summary_fields


@dataclass(frozen=True)
class Result:
    """What a training leaves behind."""

    folder: Path
    plan: Plan
    state: TrainState
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
        step = parts.saved["state"]["step"] if parts.saved else 0
        check_alike(config, world, plan, step)
        folder = on_main(lambda: make_folder(config, held), "rank 0 to make the run's folder")
        config = replace(config, name=folder.name)
        engine, loader = make_engine(config, world, parts), make_loader(config, world, parts)
        test = EvaluationLoader(parts.test_data, config.eval.batch_size, loader.preprocess, world.rank, world.size)
        state = TrainState()
        if parts.saved:
            try:
                before = OptimConfig(**parts.saved["config"]["optim"])
                optimizer = parts.saved["optimizer"]
                if before != config.optim:  # whose groups may be others
                    optimizer = regrouped(optimizer, make_optimizer(model, before, 1.0), parts.optimizer)
                with enough_memory():  # its RuntimeError is none of these below
                    engine.load_state_dict(parts.saved | {"optimizer": optimizer})
            except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise InputError(f"checkpoint.resume: the optimizer's state does not fit ({error})") from error
            state = TrainState(**parts.saved["state"])
        averages = Averages(model, config.train)
        if parts.saved:
            averages.load_state_dict(parts.saved["averages"])
        described = _described(config, parts)
        trackers = Trackers()
        watch = Watchdog(
            world, store, config.train.timeout, stop.end, parts.device, folder,
            log=lambda why: trackers.log(event("failed", state.step, why)),
        )  # fmt: skip
        watch.steps_done(state.step)
        checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep) if world.is_main else None
        grace = os.environ.get("DISTCNN_GRACE", "")
        saver = Saver(checkpoints, trackers.log, config.checkpoint.minutes, int(grace) if grace.isdecimal() else 0)

        def open_files() -> None:
            """config.yaml and the trackers, where rank 0 has them."""
            try:
                with whole_file(folder / "config.yaml") as file:
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
                    save_predictions(folder / "predictions.npz", found, parts.test_data, state.step)
            return found

        def save(state: TrainState, best: bool, wait: bool) -> str:
            if world.is_main:
                whole = {**described, **engine.state_dict(), "averages": averages.state_dict(), "state": asdict(state)}
                saver.save(whole, state.step, best=best)
            return on_main(saver.wait, "rank 0 to write the checkpoint") if wait else ""

        stop.begin(config.train.timeout)
        name, message = ("resumed", _resumed(parts, state)) if parts.saved else ("started", f"{plan.steps} steps")
        known = {"launcher": world.launcher, **environment.described(), "plan": described["plan"]}
        on_main(open_files, "rank 0 to open its trackers")
        trackers.log(event(name, state.step, message) | {"environment": known})
        if advice := slow_precision(config, parts.device):
            trackers.log(event("slow_precision", state.step, advice))
        try:
            with watch, first_out_of_memory_of_all_ranks(store), enough_memory():  # the log below holds what it says
                evaluation = fit(
                    engine, loader, plan, parts.schedule, state, trackers.log,
                    evaluate=evaluate_test, save=save, save_due=saver.due, stop=stop, watch=watch,
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
            lost = [f"the checkpoint of step {state.step}, which {saver.trouble}"] if saver.trouble else []
            try:
                with averages.in_place():
                    done = {"step": state.step, "epoch": -(-state.step // plan.steps_per_epoch)}
                    save_weights(folder / "model.safetensors", model, {**described, **done})
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


def _described(config: Config, parts: Parts) -> dict[str, Any]:
    """What a checkpoint holds besides the tensors: all that it takes to use or to continue it."""
    return {
        "config": to_dict(config),
        "plan": asdict(parts.plan),
        "classes": list(parts.train_data.classes),
        "image_size": parts.train_data.images.shape[1],
        "normalize": asdict(parts.normalize),
    }


def _newest_checkpoint(folder: Path) -> str:
    return next((f"step {step_of(path)}" for path in Checkpoints(folder / "checkpoints").all()), "")


def _resumed(parts: Parts, state: TrainState) -> str:
    before, now = (parts.saved or {})["plan"], asdict(parts.plan)
    keys = ("world_size", "micro_batch", "accumulation", "threads", "device")
    changed = "".join(f"; {key} was {before[key]}, is {now[key]}" for key in keys if before[key] != now[key])
    aside = f"; damaged and left aside: {', '.join(path.name for path in parts.damaged)}" if parts.damaged else ""
    return f"at step {state.step} of {parts.plan.steps}{changed}{aside}"
