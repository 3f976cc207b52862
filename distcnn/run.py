"""Builds the parts from a Config and a World and runs them: what the command line and the Python API both call.

Everything that can be wrong is found before the process group exists; files are read under locks, not barriers.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distcnn import models
from distcnn.config import Config, Problem
from distcnn.data import sources
from distcnn.data.augment import Augment, Normalize, statistics
from distcnn.data.loader import Preprocess, ResidentLoader, StreamingLoader, evaluation_stream
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources import ImageSet
from distcnn.errors import BadInput, DistcnnError
from distcnn.parallel.collectives import on_main
from distcnn.parallel.device import device_problems, set_up_device
from distcnn.parallel.engine_ddp import AUTOCAST, DDPEngine, autocast
from distcnn.parallel.world import World, process_group
from distcnn.parse import saved_settings, to_dict, to_yaml
from distcnn.tracking import wandb as wandb_tracking
from distcnn.tracking.base import Tracker, Trackers
from distcnn.tracking.console import ConsoleTracker, plan_table
from distcnn.tracking.jsonl import JsonlTracker
from distcnn.training.checkpoint import Checkpoints, load, whole_file
from distcnn.training.evaluate import Evaluation, evaluate
from distcnn.training.loop import TrainState, fit
from distcnn.training.optim import make_optimizer
from distcnn.training.plan import Plan, Schedule, make_plan


@dataclass(frozen=True)
class Result:
    """What a training leaves behind."""

    folder: Path
    plan: Plan
    state: TrainState
    evaluation: Evaluation  # of the final weights


def environment_problems(config: Config, world: World) -> Iterator[Problem]:
    """What does not fit this machine; cheap checks, made on every rank."""
    yield from sources.problems(config.data)
    yield from models.problems(config.model.name)
    yield from wandb_tracking.problems(config.tracking)
    yield from device_problems(config, world)
    if config.checkpoint.resume not in ("auto", "never") and not Path(config.checkpoint.resume).is_file():
        yield ("checkpoint.resume",), "no such file; give auto, never, or the path of a checkpoint"
    if problem := _unwritable(Path(config.output_dir)):
        yield ("output_dir",), problem


def train(config: Config, world: World, announce: Callable[[Any], None] = lambda _: None) -> Result:
    """Train as configured; on every rank alike. `announce` prints what is known before the first step.

    Raises BadInput for what the user can mend, DistcnnError for a run that failed.
    """
    device, threads = set_up_device(config, world)
    data = {split: sources.load(config.data, split) for split in ("train", "test")}
    _check_classes(data["train"], data["test"])
    normalize = _normalize(config, data["train"])
    classes, image_size = data["train"].classes, data["train"].images.shape[1]
    torch.manual_seed(config.seed)
    model = models.build_model(config.model.name, len(classes), image_size, config.model.args)
    plan = make_plan(
        config,
        train_images=len(data["train"]),
        test_images=len(data["test"]),
        world_size=world.size,
        parameters=sum(p.numel() for p in model.parameters()),
        forward_flops=models.forward_flops(model, image_size),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=threads,
    )
    schedule = Schedule(config, plan)
    model = _place(model, config, device)
    optimizer = make_optimizer(model, config.optim, plan.lr)
    saved, damaged = _find_resumed(config, plan, model)

    with process_group(world, cuda=device.type == "cuda", timeout_s=config.train.timeout):
        folder = on_main(lambda: _run_folder(config))
        engine = DDPEngine(model, optimizer, device, config.train.precision, config.train.clip_norm)
        state = TrainState()
        if saved:
            engine.load_state_dict(saved)
            state = TrainState(**saved["state"])
        if on_main(lambda: state.step) != state.step:
            raise DistcnnError(f"rank {world.rank} found another checkpoint than rank 0: is {folder} on a shared disk?")
        preprocess = Preprocess(
            normalize, device, _augment(config), dtype=AUTOCAST[config.train.precision] or torch.float32,
            channels_last=config.model.channels_last,
        )  # fmt: skip
        sampler = MicroBatchSampler(
            plan.train_images, batch_size=plan.batch_size, micro_batch=plan.micro_batch, rank=world.rank,
            world_size=world.size, seed=config.seed, drop_last=config.train.drop_last,
        )  # fmt: skip
        loader: ResidentLoader | StreamingLoader
        if config.data.loader == "resident":
            loader = ResidentLoader(data["train"], sampler, preprocess, config.seed)
        else:
            loader = StreamingLoader(data["train"], sampler, preprocess, config.seed, config.data.workers)

        def evaluate_test() -> Evaluation:
            return _evaluate_on(model, data["test"], config, preprocess, world)

        described = {
            "config": to_dict(replace(config, name=folder.name)),
            "plan": asdict(plan),
            "classes": list(classes),
            "image_size": image_size,
            "normalize": asdict(normalize),
            "wandb_id": saved["wandb_id"] if saved else secrets.token_hex(4),
        }
        checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)

        def save(state: TrainState, best: bool) -> None:
            if world.is_main:
                checkpoints.save({**described, **engine.state_dict(), "state": asdict(state)}, state.step, best=best)

        trackers = Trackers()
        if world.is_main:
            (folder / "config.yaml").write_text(to_yaml(replace(config, name=folder.name)), encoding="utf-8")
            announce(plan_table(plan, f"{folder.name}: {config.model.name} on {config.data.source}", world.launcher))
            trackers = Trackers(_trackers(config, plan, folder, state, described))
        if saved:
            aside = f"; damaged and left aside: {', '.join(path.name for path in damaged)}" if damaged else ""
            message = f"at step {state.step} of {plan.steps}{aside}"
            trackers.log({"kind": "event", "event": "resumed", "step": state.step, "message": message})
        try:
            evaluation = fit(
                engine, loader, plan, schedule, state, trackers.log, evaluate=evaluate_test, save=save,
                label_smoothing=config.train.label_smoothing, log_every=config.tracking.log_every,
            )  # fmt: skip
        except BaseException as error:
            trackers.finish(type(error).__name__, {"step": state.step})
            raise
        if evaluation is None:  # the checkpoint was that of the end
            evaluation = evaluate_test()
        if world.is_main:
            _save_weights(folder / "model.safetensors", model, described)
        trackers.finish("done", _summary(evaluation, state, plan, folder))
        return Result(folder, plan, state, evaluation)


def evaluate_checkpoint(path: Path, overrides: list[str], world: World) -> dict[str, Any]:
    """Evaluate a checkpoint, or a run folder's newest, on its test images; `overrides` such as `--data.root`.

    Returns an eval line as in metrics.jsonl; on every rank alike.
    """
    if path.is_dir():
        found, _ = Checkpoints(path / "checkpoints").newest_whole()
        if found is None:
            raise BadInput(
                f"{path}: holds no whole checkpoint in {path / 'checkpoints'}; give a run folder or a .pt file"
            )
        path = found
    saved = load(path)
    config = saved_settings(saved["config"], str(path)).read_arguments(overrides).check(
        world_size=1, environment=lambda config: [*sources.problems(config.data), *device_problems(config, world)]
    )  # fmt: skip
    device, _ = set_up_device(config, world)
    data = _with_classes(sources.load(config.data, "test"), tuple(saved["classes"]))
    size = saved["image_size"]
    if data.images.shape[1] != size:
        raise BadInput(f"{path}: trained on {size}×{size} images, the test images are {data.images.shape[1]} wide")
    model = models.build_model(config.model.name, len(data.classes), size, config.model.args)
    _load_weights(model, saved, path)
    model = _place(model, config, device)
    normalize = Normalize(tuple(saved["normalize"]["mean"]), tuple(saved["normalize"]["std"]))
    preprocess = Preprocess(
        normalize, device, dtype=AUTOCAST[config.train.precision] or torch.float32,
        channels_last=config.model.channels_last,
    )  # fmt: skip
    with process_group(world, cuda=device.type == "cuda", timeout_s=config.train.timeout):
        result = _evaluate_on(model, data, config, preprocess, world)
    step = saved["state"]["step"]
    epoch = -(-step // saved["plan"]["steps_per_epoch"])
    return {"kind": "eval", "split": "test", "step": step, "epoch": epoch, **result.record()}


def _with_classes(data: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """The same images with labels that index the model's `classes`; a class without images is fine here."""
    if foreign := [name for name in data.classes if name not in classes]:
        raise BadInput(f"data: the model does not know {_listed(foreign)}; it knows {_listed(classes)}")
    index = np.array([classes.index(name) for name in data.classes], np.int64)
    return ImageSet(data.images, index[data.labels], classes)


def _check_classes(train: ImageSet, test: ImageSet) -> None:
    problems = []
    if missing := [name for name in train.classes if name not in test.classes]:
        problems.append(f"data.root: class {_listed(missing)} is in the training images, but not in the test images")
    if missing := [name for name in test.classes if name not in train.classes]:
        problems.append(f"data.root: class {_listed(missing)} is in the test images, but not in the training images")
    if len(train.classes) < 2:
        problems.append(f"data: a classifier needs at least two classes; found only {_listed(train.classes)}")
    if problems:
        raise BadInput(problems)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _normalize(config: Config, train: ImageSet) -> Normalize:
    if config.data.mean is not None and config.data.std is not None:
        return Normalize(config.data.mean, config.data.std)
    return statistics(train.images)


def _augment(config: Config) -> Augment:
    data = config.data
    return Augment(data.flip, data.crop_padding, data.crop_mode, data.cutout)


def _place(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """The model on its device, in its layout; compiled in place, which leaves its keys alone."""
    if config.model.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.model.compile:
        model.compile()
    return model


def _evaluate_on(model: nn.Module, data: ImageSet, config: Config, preprocess: Preprocess, world: World) -> Evaluation:
    size = config.eval.batch_size
    stream = evaluation_stream(data, size, preprocess, world.rank, world.size)
    batches = -(-len(data) // size)
    device = preprocess.device
    return evaluate(model, stream, batches, data.classes, device, lambda: autocast(device, config.train.precision))


def _run_folder(config: Config) -> Path:
    """Make the run's folder: the named one to continue it, otherwise the first of name, name-2, … that is free."""
    name = config.name or "run"
    output = Path(config.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if config.checkpoint.resume == "auto":
            (output / name).mkdir(exist_ok=True)
            return output / name
        for folder in (output / (name if n == 1 else f"{name}-{n}") for n in count(1)):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise BadInput(f"output_dir = {output}: {error.strerror}; give a folder that can be written") from error
    raise AssertionError("count() does not end")


def _unwritable(folder: Path) -> str | None:
    """Why a folder cannot be made or written to; None if it can. Changes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder; give a folder that can be written"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written; give a folder that can"
    return None


def _find_resumed(config: Config, plan: Plan, model: nn.Module) -> tuple[dict[str, Any] | None, list[Path]]:
    """The checkpoint to go on from, checked against this run, or None to start anew; and damaged newer ones."""
    resume = config.checkpoint.resume
    if resume == "never":
        return None, []
    path, damaged = Path(resume), list[Path]()
    if resume == "auto":
        found, damaged = Checkpoints(Path(config.output_dir) / (config.name or "run") / "checkpoints").newest_whole()
        if found is None:
            return None, damaged
        path = found
    saved = load(path)
    _load_weights(model, saved, path)
    # What decides which images each step sees; anything else may change, at the user's own risk.
    before = saved["plan"] | {"seed": saved["config"]["seed"]}
    now = asdict(plan) | {"seed": config.seed}
    keys = ("train_images", "batch_size", "steps_per_epoch", "seed")
    if changed := [f"{key} was {before[key]}, is {now[key]}" for key in keys if before[key] != now[key]]:
        raise BadInput(
            f"checkpoint.resume: cannot go on from {path}: {'; '.join(changed)}; start a run of another name"
        )
    if saved["config"]["optim"]["name"] != config.optim.name:
        raise BadInput(
            f"checkpoint.resume: cannot go on from {path}: optim.name was {saved['config']['optim']['name']}"
        )
    return saved, damaged


def _load_weights(model: nn.Module, saved: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise BadInput(f"model: the weights in {path} are those of another network: {first}") from error


def _trackers(
    config: Config, plan: Plan, folder: Path, state: TrainState, described: dict[str, Any]
) -> Iterator[Tracker]:
    yield JsonlTracker(folder / "metrics.jsonl", state.step)
    if config.tracking.console:
        yield ConsoleTracker(plan, state.step)
    mode = wandb_tracking.chosen_mode(config.tracking)
    if mode != "disabled":
        known = described["config"] | {"plan": described["plan"]}
        tracking = config.tracking
        yield wandb_tracking.WandbTracker(
            folder, described["wandb_id"], mode, tracking.wandb_project, known, tracking.wandb_timeout
        )


def _summary(evaluation: Evaluation, state: TrainState, plan: Plan, folder: Path) -> dict[str, Any]:
    return {
        "step": f"{state.step} of {plan.steps}",
        "accuracy": f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.total} test images)",
        "top 5": f"{evaluation.top5_correct / evaluation.total:.2%}",
        "test loss": f"{evaluation.loss_sum / evaluation.total:.4f}",
        "best": f"{state.best_accuracy:.2%} after step {state.best_step}",
        "weakest class": _weakest(evaluation),
        "weights": folder / "model.safetensors",
        "checkpoints": folder / "checkpoints",
        "metrics": folder / "metrics.jsonl",
        "evaluate": f"distcnn evaluate {folder}",
    }


def _weakest(evaluation: Evaluation) -> str:
    known = [(accuracy, name) for name, accuracy in evaluation.per_class().items() if accuracy is not None]
    accuracy, name = min(known)
    return f"{name}, {accuracy:.2%}"


def _save_weights(path: Path, model: nn.Module, described: dict[str, Any]) -> None:
    """The final weights as safetensors, with what one needs to use them in its metadata."""
    from safetensors.torch import save_file

    config = described["config"]
    metadata = {
        "model": config["model"],
        **{key: described[key] for key in ("classes", "image_size", "normalize")},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, {key: json.dumps(value) for key, value in metadata.items()})
