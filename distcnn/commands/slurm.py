"""`distcnn slurm CONFIG`: check the run, write its batch script, submit it, and say what was submitted."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

from distcnn.commands.command import command_parser
from distcnn.config.schema import Config
from distcnn.config.settings import Settings
from distcnn.errors import InputError
from distcnn.slurm.sbatch import Job, Launcher, script

EPILOG = """examples:
  distcnn slurm configs/cifar10_resnet18.yaml --nodes 1 --gpus-per-node 4 --time 02:00:00
  distcnn slurm configs/simple_cnn.yaml --nodes 1 --ranks-per-node 8 --cpus-per-rank 4 --optim.lr 0.1
  distcnn slurm configs/simple_cnn.yaml --nodes 1 --gpus-per-node 1 --array 0-9     seeds 0 to 9, one job each
  distcnn slurm a.yaml b.yaml c.yaml --nodes 1 --gpus-per-node 1 --array 0-2       a config each
  distcnn slurm configs/simple_cnn.yaml --launcher elastic --nodes 2 --gpus-per-node 8 --print

A run that its time limit or a preemption stops is saved and requeued by itself. Submitted again, it continues.
"""


def run(arguments: list[str]) -> None:
    """Submit, or with --print only show, the job of a command line. Raises InputError before anything is written."""
    options, overrides = _parser().parse_known_args(arguments)
    job, config = _job(options, options.configs, overrides)
    text = script(job)
    if options.print:
        print(text, end="")
        return
    folder = Path(config.output_dir)
    path = folder / f"{job.name}.sbatch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"sbatch: not found on this machine; {path} is written: submit it where Slurm is") from None
    except OSError as error:
        raise InputError(f"output_dir = {folder}: {error.strerror}; give a folder that can be written") from error
    if done.returncode:
        raise InputError(f"sbatch {path}: {' '.join(done.stderr.split())}")
    number = done.stdout.strip().split(";")[0]
    print(_submitted(job, config, path, number))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "slurm", "CONFIG.yaml [CONFIG.yaml ...] [options] [--section.key value ...]", __doc__, EPILOG
    )
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG.yaml", help="the run; several only with --array")
    add("--nodes", type=int, default=1, metavar="N", help="nodes (elastic: at most)")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs a node, one rank each")
    add("--ranks-per-node", type=int, metavar="N", help="default: --gpus-per-node, or 1")
    add("--cpus-per-rank", type=int, metavar="N", help="default: the cluster's")
    add("--time", metavar="[D-]HH:MM:SS", help="time limit; default: the partition's")
    add("--array", metavar="0-3", help="one job for each seed, or for each config")
    add("--launcher", choices=get_args(Launcher), default="srun", help="default: srun, one task a rank")
    add("--signal", choices=("USR1", "USR2"), default="USR1", help="the scheduler's warning")
    add("--grace", type=int, default=120, metavar="S", help="seconds from the warning to the time limit; default: 120")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="another sbatch option, as partition=long")
    add("--print", action="store_true", help="print the script, write and submit nothing")
    return parser


def _job(options: argparse.Namespace, configs: list[str], overrides: list[str]) -> tuple[Job, Config]:
    ranks = options.ranks_per_node or options.gpus_per_node or 1
    problems = [f"--{name} {getattr(options, key)}: should be 1 or more" for name, key, least in (
        ("nodes", "nodes", 1), ("ranks-per-node", "ranks_per_node", 1), ("cpus-per-rank", "cpus_per_rank", 1),
        ("gpus-per-node", "gpus_per_node", 0), ("grace", "grace", 1),
    ) if getattr(options, key) is not None and getattr(options, key) < least]  # fmt: skip
    if options.gpus_per_node and ranks > options.gpus_per_node:
        problems.append(f"--ranks-per-node {ranks}, --gpus-per-node {options.gpus_per_node}: one GPU for each rank")
    if len(configs) > 1 and not options.array:
        problems.append(f"{' '.join(configs)}: several configs need --array 0-{len(configs) - 1}, a job for each")
    if problems:
        raise InputError(problems)
    # The run is checked here for the ranks it will have, not first on the node after hours in the queue.
    checked = []
    for path in configs:
        settings = Settings().read_yaml(Path(path)).read_arguments(overrides).default("name", Path(path).stem)
        if options.launcher == "elastic":
            for nodes in range(1, options.nodes):  # it may go on with any number of them
                settings.check(nodes * ranks)
        checked.append(settings.check(options.nodes * ranks))
    # Without what sbatch's header or squeue's columns could stumble over.
    name = re.sub(r"[^\w.+-]", "-", str(checked[0].name)) if len(configs) == 1 else "distcnn"
    if options.array and len(configs) == 1:
        overrides = [
            *overrides,
            "--name",
            str(checked[0].name),
        ]  # the elements' names begin with it, wherever it was given
    pattern = "%x-%A_%a.out" if options.array else "%x-%j.out"
    job = Job(
        launcher=options.launcher, name=name, nodes=options.nodes, ranks_per_node=ranks,
        gpus_per_node=options.gpus_per_node, cpus_per_rank=options.cpus_per_rank, time=options.time,
        signal=options.signal, grace=options.grace, array=options.array, options=tuple(options.option),
        output=str(Path(checked[0].output_dir) / pattern), python=shlex.quote(sys.executable),
        configs=tuple(configs), arguments=tuple(overrides),
    )  # fmt: skip
    return job, checked[0]


def _submitted(job: Job, config: Config, path: Path, number: str) -> str:
    ranks = job.nodes * job.ranks_per_node
    device = f"{job.gpus_per_node} GPUs" if job.gpus_per_node else f"{job.ranks_per_node} CPU ranks"
    folder = os.path.join(config.output_dir, f"{config.name}-seed*" if job.array else str(config.name))  # noqa: PTH118
    log = job.output.replace("%x", job.name).replace("%j", number).replace("%A", number).replace("%a", "*")
    lines = {
        "submitted": f"job {number}{f', elements {job.array}' if job.array else ''}, by {job.launcher}",
        "ranks": f"{job.nodes} nodes × {device} = {ranks}, global batch {config.train.batch_size}",
        "time limit": f"{job.time or 'the partition’s'}, {job.signal} {job.grace} s before",
        "script": path, "output": log, "run": folder, "watch": f"squeue --job {number}",
        "cancel": f"scancel {number}",
    }  # fmt: skip
    return "\n".join(f"{key:>10}  {value}" for key, value in lines.items())
