"""A trained model with everything needed to use it: classes, image size, preprocessing and precision."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distcnn.checkpoint.file import Checkpoints, ValidFile, open_valid
from distcnn.checkpoint.state import Checkpoint, ModelDescription
from distcnn.checkpoint.weights import is_safetensors, load_safetensors, load_weights
from distcnn.config.schema import Config
from distcnn.config.settings import Overrides, saved_settings
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
    """A network as its run evaluates it: in eval mode, on its device, with the averaged weights if there are any."""

    path: Path  # the checkpoint or model.safetensors
    description: ModelDescription  # as it was saved
    config: Config  # of the run, with the overrides given
    model: nn.Module  # [n, 3, S, S], normalised, in the precision's type → [n, classes] logits
    device: torch.device

    def preprocess(self) -> Preprocess:
        """Return the preprocessing of the training: [n, S, S, 3] uint8 → the network's input."""
        return make_preprocess(self.config, self.description.normalize, self.device)


def load_model(
    path: str | Path,
    overrides: Overrides | None = None,
    world: World | None = None,
    problems: Callable[[Config], Iterable[Problem]] = lambda _: (),
) -> Trained:
    """Load a trained network from a run folder (its newest valid checkpoint), a checkpoint, or a model.safetensors.

    `overrides` are settings by their dotted keys, such as `{"train.device": "cpu"}`; `problems` yields what is wrong
    with the config besides its device. Raises InputError if there is no such model or it does not fit.
    """
    world = world or World()
    path, weights, averages, description = _read(Path(path))
    config = (
        saved_settings(description.config, str(path))
        .update(overrides or {})
        .check(
            world_size=1,
            environment=lambda config: [*problems(config), *common_device_problems(config, world)],
            device=lambda config: own_device_problems(config, world),
        )
    )
    device, _ = set_up_device(config, world)
    size, classes = description.image_size, len(description.classes)
    model = build_model(config.model.name, classes, size, config.model.args)
    load_weights(model, weights, path)
    # Never compiled: for one pass over the images that takes longer than it saves, and the smaller last batch would be
    # compiled again.
    fix = "the model alone does not fit: use train.device cpu"
    with explain_out_of_memory(device, lambda: [fix]):
        model = place(model, config, device, compile=False)
        average = Averages(model, config.train)
        average.load_state_dict(averages)
        average.apply()
    return Trained(path, description, config, model.eval(), device)


def _read(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any], ModelDescription]:
    """Return the file read, its weights, their averages, and the description needed to use them."""
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    if is_safetensors(path):
        weights, description = load_safetensors(path)
        return path, weights, {}, description
    file = _newest(path) if path.is_dir() else open_valid(path)
    checkpoint = Checkpoint.load(file)
    return file.path, checkpoint.model, checkpoint.averages, checkpoint.description


def _newest(run: Path) -> ValidFile:
    """Return a run folder's newest valid checkpoint. Raises InputError if there is none."""
    file, _ = Checkpoints(run / "checkpoints").newest_valid()
    if file is None:
        raise InputError(f"{run}: holds no valid checkpoint in {run / 'checkpoints'}; give a run folder or a .pt file")
    return file
