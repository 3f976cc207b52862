"""Weights: loaded into a model, and stored as safetensors with their description as metadata."""

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

_PUBLIC = ("model", "train.precision", "eval.views")  # no paths, nothing about the machine
_KEY = "distcnn"  # of the metadata; a single key, as several are written in random order


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load weights, read from `path`, into the model. Raises InputError if they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"model: the weights in {path} do not fit the network: {first}") from error


def save_safetensors(path: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Write a state_dict as safetensors, with only the settings needed to use it. Raises OSError."""
    flat = flatten(description.config)
    config = {key: value for key, value in flat.items() if key in _PUBLIC or key.split(".")[0] in _PUBLIC}
    metadata = asdict(replace(description, config=unflatten(config)))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_file(path) as partial:
        try:
            save_file(tensors, partial, {_KEY: json.dumps(metadata)})
        except SafetensorError as error:  # raised for a full disk, too
            raise OSError(str(error)) from error


def load_safetensors(path: Path) -> tuple[dict[str, Any], ModelDescription]:
    """Read a model.safetensors. Raises InputError if it is missing, unreadable, or was not written by distcnn."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    if text is None:
        raise InputError(f"{path}: holds no metadata of distcnn; give a model.safetensors written by distcnn")
    try:
        return weights, _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def is_safetensors(path: Path) -> bool:
    """Return whether a file is in safetensors format, by its content: an 8-byte length, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


_ADAPTER = TypeAdapter(ModelDescription)
