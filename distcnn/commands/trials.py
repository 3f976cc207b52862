"""`distcnn trials CONFIG -n N [--vs CONFIG2]`: repeat a run over N seeds; compare two configs."""

import argparse
from functools import partial
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_json, natural_int, positive_int
from distcnn.commands.slurm import add_resources, submit
from distcnn.errors import DistcnnError, InputError
from distcnn.runs.records import to_json
from distcnn.text import missing

EPILOG = """examples:
  distcnn trials configs/digits.yaml -n 5
  distcnn trials configs/a.yaml -n 5 --vs configs/b.yaml --train.duration 20ep
  distcnn trials configs/a.yaml -n 16 --slurm --gpus-per-node 1 --time 01:00:00
  distcnn trials configs/a.yaml -n 16                  afterwards: runs the remaining trials, and summarises all

Trial i is an ordinary run, NAME-seed<i>, with --seed i. Each GPU in CUDA_VISIBLE_DEVICES, or else the CPU, runs one
trial at a time; --parallel K runs K at once on these. If the command is repeated, finished trials are kept and the
others resume from their checkpoints. The results are written as NAME-trials.json and NAME-trials.html beside the runs.
"""


def trials(parser: Parser) -> Handler:
    """Repeat a run over N seeds; compare two configs."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("config", metavar="CONFIG.yaml", help="the run")
    add("-n", type=positive_int, required=True, metavar="N", help="number of seeds")
    add("--vs", metavar="CONFIG2.yaml", help="a run to compare with, over the same seeds")
    add("--first-seed", type=natural_int, default=0, metavar="S", help="the lowest seed; default: 0")
    add("--parallel", type=positive_int, metavar="K", help="trials at once; default: one per GPU, or one on the CPU")
    add("--slurm", action="store_true", help="submit a job array instead, as distcnn slurm does")
    add_json(parser)
    job = add_resources(parser.add_argument_group("with --slurm"))
    parser.add_settings()
    parser.set_defaults(problems=[])
    return partial(run, job)


def run(job: list[argparse.Action], options: Options) -> None:
    """Run the missing trials, print and write the results. Raises InputError, StoppedError or DistcnnError."""
    problems: list[str] = options.problems
    if needs := missing("trials", "scipy", "plotly"):
        problems.append(f"distcnn trials: {needs}")
    if not options.slurm:
        given = [action for action in job if getattr(options, action.dest) != action.default]
        problems += [f"{action.option_strings[0]}: takes effect with --slurm only" for action in given]
    if problems:
        raise InputError(problems)
    paths = [Path(options.config), *([Path(options.vs)] if options.vs else [])]
    if options.slurm:
        last = options.first_seed + options.n - 1
        for path in paths:
            submit([str(path)], f"{options.first_seed}-{last}", options)
        return
    from distcnn.trials.compare import compare

    seeds = range(options.first_seed, options.first_seed + options.n)
    found = compare(paths, options.settings, seeds, options.parallel)
    if options.json:
        print(to_json(found.summary), flush=True)
    if found.failed:
        raise DistcnnError(f"{len(found.failed)} of {found.count} trials failed: {'; '.join(found.failed)}")
