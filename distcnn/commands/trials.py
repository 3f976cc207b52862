"""`distcnn trials CONFIG -n N [--vs CONFIG2]`: the same config over N seeds, and whether another one is better."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from distcnn.commands.command import command_parser
from distcnn.errors import DistcnnError, InputError
from distcnn.files import atomic_file
from distcnn.text import missing

EPILOG = """examples:
  distcnn trials configs/digits.yaml -n 5
  distcnn trials configs/a.yaml -n 5 --vs configs/b.yaml --train.duration 20ep
  distcnn trials configs/a.yaml -n 16 --slurm --gpus-per-node 1 --time 01:00:00
  distcnn trials configs/a.yaml -n 16                  afterwards: runs what is left, and adds it all up

Trial i is an ordinary run, NAME-seed<i>, with --seed i: one at a time on each GPU that CUDA_VISIBLE_DEVICES leaves, or
one on the CPU; --parallel K shares them. Started again, finished trials are kept and others go on from their
checkpoints. The table is kept as NAME-trials.json and NAME-trials.html beside the runs.
"""


def run(arguments: list[str]) -> None:
    """Run what is missing, print and keep the table. Raises InputError, StoppedError or DistcnnError."""
    options, overrides = _parser().parse_known_args(arguments)
    problems = [
        f"{flag} {value}: should be {least} or more"
        for flag, value, least in (
            ("-n", options.n, 1), ("--first-seed", options.first_seed, 0), ("--parallel", options.parallel, 1)
        )
        if value is not None and value < least
    ]  # fmt: skip
    if needs := missing("trials", "scipy", "plotly"):
        problems.append(f"distcnn trials: {needs}")
    if problems:
        raise InputError(problems)
    paths = [Path(options.config), *([Path(options.vs)] if options.vs else [])]
    if options.slurm:
        _submit(paths, options, overrides)
        return
    from distcnn.trials.picture import write_picture
    from distcnn.trials.plan import plan_trials, result, unfinished
    from distcnn.trials.run import run_trials
    from distcnn.trials.summary import summarise
    from distcnn.trials.table import print_table

    trials = plan_trials(paths, overrides, range(options.first_seed, options.first_seed + options.n))
    failed = run_trials(unfinished(trials), overrides, options.parallel)
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
    if options.json:
        print(json.dumps(found), flush=True)
    if failed:
        raise DistcnnError(f"{len(failed)} of {len(trials)} trials failed: {'; '.join(failed)}")


def _submit(paths: Sequence[Path], options: argparse.Namespace, rest: list[str]) -> None:
    from distcnn.commands import slurm

    last = options.first_seed + options.n - 1
    for path in paths:
        slurm.run([str(path), "--array", f"{options.first_seed}-{last}", *rest])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "trials", "CONFIG.yaml -n N [--vs CONFIG2.yaml] [options] [--section.key value ...]", __doc__, EPILOG
    )
    add = parser.add_argument
    add("config", metavar="CONFIG.yaml", help="the run")
    add("-n", type=int, required=True, metavar="N", help="number of seeds")
    add("--vs", metavar="CONFIG2.yaml", help="a run to be compared with, over the same seeds")
    add("--first-seed", type=int, default=0, metavar="S", help="default: 0")
    add("--parallel", type=int, metavar="K", help="trials at once; default: one per GPU, or one on the CPU")
    add("--slurm", action="store_true", help="submit an array; the other options are those of distcnn slurm")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser
