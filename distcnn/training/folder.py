"""The folder of a run: making it, finding where a run stopped, and the final weights."""

import json
import os
import secrets
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from distcnn.config import Config
from distcnn.errors import BadInput
from distcnn.parse import to_dict
from distcnn.training.checkpoint import Checkpoints, load, whole_file
from distcnn.training.plan import Plan

RATES = ("lr", "lr_scaling", "base_batch")  # of the optimizer's settings, those that the schedule sets at every step


def make_folder(config: Config) -> Path:
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


def run_id(folder: Path) -> str:
    """The run's id for trackers: made at its first start, and the same at every later one."""
    path = folder / "run_id"
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be made or written to; None if it can. Changes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder; give a folder that can be written"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written; give a folder that can"
    return None


def find_resumed(config: Config, plan: Plan, model: nn.Module) -> tuple[dict[str, Any] | None, list[Path]]:
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
    load_weights(model, saved, path)
    # What decides which images each step sees, and what the optimizer's state belongs to. The rates may change.
    old, new = saved["config"], to_dict(config)
    before, now = saved["plan"] | {"seed": old["seed"]}, asdict(plan) | {"seed": new["seed"]}
    pairs = [(key, before[key], now[key]) for key in ("train_images", "batch_size", "steps_per_epoch", "seed")]
    pairs += [(f"optim.{key}", old["optim"].get(key), value) for key, value in new["optim"].items() if key not in RATES]
    if changed := [f"{key} was {was}, is {now}" for key, was, now in pairs if was != now]:
        raise BadInput(
            f"checkpoint.resume: cannot go on from {path}: {'; '.join(changed)}; start a run of another name"
        )
    return saved, damaged


def load_weights(model: nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into the model. Raises BadInput where they do not fit."""
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise BadInput(f"model: the weights in {path} are those of another network: {first}") from error


def save_weights(path: Path, model: nn.Module, described: dict[str, Any]) -> None:
    """The final weights as safetensors, with what one needs to use them in its metadata."""
    from safetensors.torch import save_file

    config = described["config"]
    metadata = {
        "model": config["model"],
        **{key: described[key] for key in ("classes", "image_size", "normalize")},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, {"distcnn": json.dumps(metadata)})  # one key: several would come in random order
