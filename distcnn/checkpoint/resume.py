"""Resuming: find the checkpoint of an interrupted run, and check what has changed since."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from distcnn.checkpoint.file import Checkpoints, open_valid
from distcnn.checkpoint.state import Checkpoint
from distcnn.checkpoint.weights import load_weights
from distcnn.config.plan import Plan
from distcnn.config.schema import Config
from distcnn.config.settings import to_dict
from distcnn.config.tree import Change, diff
from distcnn.errors import InputError

# Values of the plan that define a position within an epoch.
MUST_MATCH_PLAN = ("train_images", "batch_size", "steps_per_epoch")
# Settings that must not change within a run, as the saved state would not fit.
MUST_MATCH = ("seed", "model.name", "optim.name", "train.batch_size")
# Settings and sections that may change: paths, reporting, duration and hardware.
MAY_CHANGE = (
    "name", "output_dir", "engine", "eval", "checkpoint", "tracking", "data.root", "data.args.url", "data.args.md5",
    "data.cache_dir", "data.loader", "data.workers", "model.compile", "train.duration", "train.micro_batch",
    "train.device", "train.backend", "train.deterministic", "train.threads", "train.timeout",
)  # fmt: skip


def find_checkpoint(config: Config, plan: Plan, model: nn.Module) -> tuple[Checkpoint | None, list[Path]]:
    """Find the checkpoint to resume from, check it against this run, and load its weights into the model.

    Returns it, or None to start from scratch, and the newer checkpoints that were skipped as damaged. Raises InputError
    if it is missing, damaged, or of a run with other settings.
    """
    resume, damaged = config.checkpoint.resume, list[Path]()
    if resume == "never":
        return None, damaged
    if resume == "auto":
        folder = Path(config.output_dir) / (config.name or "run") / "checkpoints"
        file, damaged = Checkpoints(folder).newest_valid()
        if file is None:
            return None, damaged
    else:
        file = open_valid(Path(resume))
    checkpoint = Checkpoint.load(file)
    load_weights(model, checkpoint.model, file.path)
    _check_changes(checkpoint, config, plan, file.path)
    return checkpoint, damaged


def forbidden_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = MAY_CHANGE
) -> list[Change]:
    """Return the changes that a resumed run must not have; `allowed` are keys or sections."""
    free = set(allowed)
    return [one for one in diff(before, now) if one.key in MUST_MATCH or free.isdisjoint(_key_and_sections(one.key))]


def _key_and_sections(key: str) -> set[str]:
    """Return a key and its sections: optim.args.momentum, optim.args and optim."""
    parts = key.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def _check_changes(checkpoint: Checkpoint, config: Config, plan: Plan, path: Path) -> None:
    """Raise InputError if the checkpoint is of a run with other settings."""
    before, now = ({key: asdict(one)[key] for key in MUST_MATCH_PLAN} for one in (checkpoint.plan, plan))
    changes = diff(before, now)
    changes += forbidden_changes(checkpoint.config, to_dict(config), {*MAY_CHANGE, *config.checkpoint.allow_changes})
    if not changes:
        return
    fixed = any(change.key in (*MUST_MATCH, *MUST_MATCH_PLAN) for change in changes)
    fix = "" if fixed else ", or allow the change by --checkpoint.allow_changes '[KEY, …]' if it is intended"
    raise InputError(
        f"checkpoint.resume: {path} was trained with other settings: {'; '.join(map(str, changes))}; "
        f"start a run under another name{fix}"
    )
