"""Where to go on: the checkpoint of an interrupted run, and what may have changed since."""

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

# Of the plan: a position in an epoch means something else when one of these has changed.
MUST_MATCH_PLAN = ("train_images", "batch_size", "steps_per_epoch")
# Settings that are never changed in a run: the saved state would not fit.
MUST_MATCH = ("seed", "model.name", "optim.name", "train.batch_size")
# Settings and sections that may: where files lie, what is reported, how long it goes on, and on what it runs.
MAY_CHANGE = (
    "name", "output_dir", "engine", "eval", "checkpoint", "tracking", "data.root", "data.args.url", "data.args.md5",
    "data.cache_dir", "data.loader", "data.workers", "model.compile", "train.duration", "train.micro_batch",
    "train.device", "train.backend", "train.deterministic", "train.threads", "train.timeout",
)  # fmt: skip


def find_checkpoint(config: Config, plan: Plan, model: nn.Module) -> tuple[Checkpoint | None, list[Path]]:
    """Find the checkpoint to go on from, check it against this run, and put its weights into the model.

    Returns None to start anew, and the newer checkpoints that were passed over as damaged. Raises InputError where it
    belongs to another run.
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
    """The changed settings with which a run would not be the same run; `allowed` are keys or sections."""
    free = set(allowed)
    return [one for one in diff(before, now) if one.key in MUST_MATCH or free.isdisjoint(_keys_above(one.key))]


def _keys_above(key: str) -> set[str]:
    """A key and what it is in: optim.args.momentum, optim.args and optim."""
    parts = key.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def _check_changes(checkpoint: Checkpoint, config: Config, plan: Plan, path: Path) -> None:
    """Raise InputError where the run of the checkpoint was another one."""
    before, now = ({key: asdict(one)[key] for key in MUST_MATCH_PLAN} for one in (checkpoint.plan, plan))
    changes = diff(before, now)
    changes += forbidden_changes(checkpoint.config, to_dict(config), {*MAY_CHANGE, *config.checkpoint.allow_changes})
    if not changes:
        return
    fixed = any(change.key in (*MUST_MATCH, *MUST_MATCH_PLAN) for change in changes)
    fix = "" if fixed else ", or allow the change by --checkpoint.allow_changes '[KEY, …]' if it is meant"
    raise InputError(
        f"checkpoint.resume: {path} was trained otherwise: {'; '.join(map(str, changes))}; "
        f"start a run of another name{fix}"
    )
