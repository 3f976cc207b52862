"""The runs of a comparison over seeds, and which of them remain to be trained."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distcnn.checkpoint.resume import forbidden_changes
from distcnn.config.schema import Config
from distcnn.config.settings import load_settings, to_dict
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.runs.history import History, read_history
from distcnn.runs.records import Record
from distcnn.training.build import checked


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: a config with one seed."""

    path: Path  # the YAML file
    group: str  # the config's own name, shared by its trials
    config: Config  # with the trial's name and seed

    @property
    def name(self) -> str:
        """The run's name: GROUP-seed<i>."""
        return str(self.config.name)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir) / self.name

    @property
    def log(self) -> Path:
        """The file with the output of the run's process."""
        return self.folder.with_name(f"{self.name}.log")


def plan_trials(paths: Sequence[Path], overrides: list[str], seeds: Iterable[int]) -> list[Trial]:
    """Return all trials, ordered by seed, then config. Raises InputError with every problem of a config."""
    configs = [checked(load_settings(path, overrides), World()) for path in paths]
    names = [str(config.name) for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f"--vs {paths[1]}: its name, {names[0]}, is that of {paths[0]} too; give it another one")
    return [
        Trial(path, name, replace(config, name=f"{name}-seed{seed}", seed=seed))
        for seed in seeds
        for path, name, config in zip(paths, names, configs, strict=True)
    ]


def unfinished(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials that are not done. Raises InputError with every folder that holds another or unreadable run."""
    left, problems = list[Trial](), list[str]()
    for trial in trials:
        try:
            if not _is_done(trial):
                left.append(trial)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return left


def _is_done(trial: Trial) -> bool:
    """Return whether the trial's run is done. Raises InputError if its folder holds another or an unreadable run.

    Damaged lines of its log are ignored: its checkpoint is enough to continue.
    """
    try:
        run = read_history(trial.folder)
    except InputError:  # nothing yet
        return False
    if run.damage and (run.state == "unreadable" or not run.settings):
        raise _refused(trial, *run.damage)
    if changes := forbidden_changes(run.settings, to_dict(trial.config)):
        raise _refused(trial, f"was trained with other settings: {'; '.join(map(str, changes))}")
    longer = run.settings.get("train", {}).get("duration") != trial.config.train.duration
    done = run.state == "done" and not longer
    if done and _last_evaluation(run) is None:  # resuming from the end would not log it again
        raise _refused(trial, *run.damage, f"metrics.jsonl: no evaluation of the last step, {run.step}")
    for damage in run.damage:
        print(f"warning: {trial.folder}: {damage}", file=sys.stderr)
    return done


def _refused(trial: Trial, *reasons: str) -> InputError:
    return InputError(f"{trial.folder}: {'; '.join(reasons)}; give another --name, or remove the folder")


def result(trial: Trial) -> dict[str, Any] | None:
    """Return a finished run's last evaluation (accuracy, correct, total, loss, step), None for an unfinished run."""
    try:
        run = read_history(trial.folder)
    except InputError:
        return None
    last = _last_evaluation(run) if run.state == "done" else None
    return last and {key: last.get(key) for key in ("accuracy", "correct", "total", "loss", "step")}


def _last_evaluation(run: History) -> Record | None:
    """Return the evaluation of the run's last step, None if the log has none or its line is damaged."""
    return next((record for record in reversed(run.evaluations) if record["step"] == run.step), None)
