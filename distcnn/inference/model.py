"""A trained model with all that it takes to use it: its classes, image size, preprocessing and precision."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distcnn.checkpoint.file import Checkpoints
from distcnn.checkpoint.resume import load_exported, load_run, load_weights
from distcnn.config.schema import Config
from distcnn.config.settings import Overrides, saved_settings
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.distributed.device import common_device_problems, own_device_problems, set_up_device
from distcnn.distributed.memory import explain_out_of_memory
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.models.build import build_model
from distcnn.registry import Problem
from distcnn.training.averaging import Averages
from distcnn.training.build import make_preprocess, place


@dataclass(frozen=True)
class Trained:
    """A network as its run evaluates it: in eval mode, on its device, with the moving average's weights if any."""

    path: Path  # of the checkpoint, or of the model.safetensors
    config: Config  # of the run, with the overrides given
    recipe: dict[str, Any]  # as it was saved; from a model.safetensors, of model, precision and views alone
    model: nn.Module  # [n, 3, S, S], normalised, in the precision's type → [n, classes] logits
    classes: tuple[str, ...]
    image_size: int  # S, in pixels
    normalize: Normalize
    device: torch.device
    step: int
    epoch: int

    def preprocess(self) -> Preprocess:
        """[n, S, S, 3] uint8 → the network's input, as in training."""
        return make_preprocess(self.config, self.normalize, self.device)


def load_model(
    path: str | Path,
    overrides: Overrides | None = None,
    world: World | None = None,
    problems: Callable[[Config], Iterable[Problem]] = lambda _: (),
) -> Trained:
    """The network of a checkpoint, of a run folder's newest whole one, or of a model.safetensors.

    `overrides` are settings by their dotted keys, such as `{"train.device": "cpu"}`; `problems` tells what of the
    config does not fit besides its device. Raises InputError where there is no such model, or where it does not fit.
    """
    path, world = _chosen(Path(path)), world or World()
    saved = _read(path)
    config = (
        saved_settings(saved["config"], str(path))
        .update(overrides or {})
        .check(
            world_size=1,
            environment=lambda config: [*problems(config), *common_device_problems(config, world)],
            device=lambda config: own_device_problems(config, world),
        )
    )
    device, _ = set_up_device(config, world)
    classes, size = tuple(saved["classes"]), saved["image_size"]
    model = build_model(config.model.name, len(classes), size, config.model.args)
    load_weights(model, saved, path)
    # Not compiled, whatever the run was: for one pass over some images that takes longer than it saves, and the last,
    # smaller batch would be compiled anew.
    cure = "the model alone is too much for it now: train.device cpu is another place"
    with explain_out_of_memory(device, lambda: [cure]):
        model = place(model, config, device, compile=False)
        averages = Averages(model, config.train)
        averages.load_state_dict(saved["averages"])
        averages.apply()
    normalize = Normalize(tuple(saved["normalize"]["mean"]), tuple(saved["normalize"]["std"]))
    at = saved["step"], saved["epoch"]
    return Trained(path, config, saved["config"], model.eval(), classes, size, normalize, device, *at)


def _chosen(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    if not path.is_dir():
        return path
    found, _ = Checkpoints(path / "checkpoints").newest_whole()
    if found is None:
        raise InputError(
            f"{path}: holds no whole checkpoint in {path / 'checkpoints'}; give a run folder or a .pt file"
        )
    return found


def is_safetensors(path: Path) -> bool:
    """Whether a file is one, by its content: 8 bytes of a length, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """What is saved of a model, in the same words of either kind of file."""
    if is_safetensors(path):
        weights, described = load_exported(path)
        precision, views = {"precision": described["precision"]}, {"views": described["views"]}
        config = {"model": described["model"], "train": precision, "eval": views}
        return {**described, "config": config, "model": weights, "averages": {}}
    saved = load_run(path)
    step = saved["state"]["step"]
    return {**saved, "step": step, "epoch": -(-step // saved["plan"]["steps_per_epoch"])}
