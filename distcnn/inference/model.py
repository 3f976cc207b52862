"""A trained model with all that it takes to use it: its classes, image size, preprocessing and precision."""

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
    """A network as its run evaluates it: in eval mode, on its device, with the moving average's weights if any."""

    path: Path  # of the checkpoint, or of the model.safetensors
    description: ModelDescription  # as it was saved
    config: Config  # of the run, with the overrides given
    model: nn.Module  # [n, 3, S, S], normalised, in the precision's type → [n, classes] logits
    device: torch.device

    def preprocess(self) -> Preprocess:
        """[n, S, S, 3] uint8 → the network's input, as in training."""
        return make_preprocess(self.config, self.description.normalize, self.device)


def load_model(
    path: str | Path,
    overrides: Overrides | None = None,
    world: World | None = None,
    problems: Callable[[Config], Iterable[Problem]] = lambda _: (),
) -> Trained:
    """The network of a checkpoint, of a run folder's newest valid one, or of a model.safetensors.

    `overrides` are settings by their dotted keys, such as `{"train.device": "cpu"}`; `problems` tells what of the
    config does not fit besides its device. Raises InputError where there is no such model, or where it does not fit.
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
    # Not compiled, whatever the run was: for one pass over some images that takes longer than it saves, and the last,
    # smaller batch would be compiled anew.
    fix = "the model alone is too much for it now: train.device cpu is another place"
    with explain_out_of_memory(device, lambda: [fix]):
        model = place(model, config, device, compile=False)
        average = Averages(model, config.train)
        average.load_state_dict(averages)
        average.apply()
    return Trained(path, description, config, model.eval(), device)


def _read(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any], ModelDescription]:
    """The file that was read; its weights, their averages, and what it takes to use them."""
    if not path.exists():
        raise InputError(f"{path}: no such run folder or checkpoint")
    if is_safetensors(path):
        weights, description = load_safetensors(path)
        return path, weights, {}, description
    file = _newest(path) if path.is_dir() else open_valid(path)
    checkpoint = Checkpoint.load(file)
    return file.path, checkpoint.model, checkpoint.averages, checkpoint.description


def _newest(run: Path) -> ValidFile:
    """The newest valid checkpoint of a run folder. Raises InputError."""
    file, _ = Checkpoints(run / "checkpoints").newest_valid()
    if file is None:
        raise InputError(f"{run}: holds no valid checkpoint in {run / 'checkpoints'}; give a run folder or a .pt file")
    return file
