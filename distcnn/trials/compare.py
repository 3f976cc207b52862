"""Train the missing trials of a comparison over seeds; print and write the results."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcnn.files import atomic_file
from distcnn.trials.picture import write_picture
from distcnn.trials.plan import plan_trials, result, unfinished
from distcnn.trials.run import run_trials
from distcnn.trials.summary import summarise
from distcnn.trials.table import print_table


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    summary: dict[str, Any]  # see `summarise`
    count: int  # of all trials
    failed: list[str]  # the trials that failed, and why


def compare(paths: Sequence[Path], overrides: list[str], seeds: Iterable[int], parallel: int | None) -> Comparison:
    """Run the missing trials, `parallel` at once; print the table, and write it and the plot beside the runs.

    `overrides` are command-line words for every trial, such as --optim.lr 0.1. Raises InputError and StoppedError.
    """
    trials = plan_trials(paths, overrides, seeds)
    failed = run_trials(unfinished(trials), overrides, parallel)
    groups = dict.fromkeys(trial.group for trial in trials)
    found = summarise({
        group: {trial.config.seed: done for trial in trials if trial.group == group and (done := result(trial))}
        for group in groups
    })  # fmt: skip
    table = trials[0].folder.with_name(f"{'-vs-'.join(groups)}-trials.json")
    table.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(table) as aside:
        aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with atomic_file(table.with_suffix(".html")) as aside:
        write_picture(found, aside)
    print_table(found)
    return Comparison(found, len(trials), failed)
