"""A network's weights: into a model, and as safetensors with what it takes to use them in the metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distcnn.checkpoint.state import ModelDescription, first_problem
from distcnn.config.tree import flatten, unflatten
from distcnn.errors import InputError
from distcnn.files import atomic_file

_PUBLIC = ("model", "train.precision", "eval.views")  # no paths, nothing of where it was trained
_KEY = "distcnn"  # of the metadata; one key alone, as several are written in random order


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put weights, read from `path`, into the model. Raises InputError where they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"model: the weights in {path} are those of another network: {first}") from error


def save_safetensors(path: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write a state_dict as safetensors; of the config only what is needed to use it. Raises OSError."""
    flat = flatten(description.config)
    config = {key: value for key, value in flat.items() if key in _PUBLIC or key.split(".")[0] in _PUBLIC}
    metadata = asdict(replace(description, config=unflatten(config)))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_file(path) as partial:
        try:
            save_file(tensors, partial, {_KEY: json.dumps(metadata)})
        except SafetensorError as error:  # its own name for a full disk
            raise OSError(str(error)) from error


def load_safetensors(path: Path) -> tuple[dict[str, Any], ModelDescription]:
    """The weights of a model.safetensors, and what it takes to use them. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    if text is None:
        raise InputError(f"{path}: holds weights only; distcnn's own model.safetensors says how to use them")
    try:
        return weights, _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def is_safetensors(path: Path) -> bool:
    """Whether a file is one, by its content: 8 bytes of a length, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


_ADAPTER = TypeAdapter(ModelDescription)
