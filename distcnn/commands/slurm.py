"""`distcnn slurm CONFIG`: check a run, write its batch script, submit it, and print what was submitted."""

import argparse
import os
from collections.abc import Sequence

from distcnn.commands.parser import Handler, Options, Parser, natural_int, positive_int
from distcnn.slurm.job import BatchScript, Job, batch_script

EPILOG = """examples:
  distcnn slurm configs/cifar10_resnet18.yaml --nodes 1 --gpus-per-node 4 --time 02:00:00
  distcnn slurm configs/simple_cnn.yaml --nodes 1 --ranks-per-node 8 --cpus-per-rank 4 --optim.lr 0.1
  distcnn slurm configs/simple_cnn.yaml --nodes 1 --gpus-per-node 1 --array 0-9     seeds 0 to 9, one job each
  distcnn slurm a.yaml b.yaml c.yaml --nodes 1 --gpus-per-node 1 --array 0-2       one job per config
  distcnn slurm configs/simple_cnn.yaml --launcher elastic --nodes 2 --gpus-per-node 8 --print

A run that reaches its time limit or is preempted saves and requeues itself. Submitted again, it continues.
"""


def slurm(parser: Parser) -> Handler:
    """Write and submit a batch script for a run."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("configs", nargs="+", metavar="CONFIG.yaml", help="the run; several only with --array")
    parser.add_settings()
    add("--array", metavar="0-3", help="one job per seed, or per config")
    add_resources(parser)
    return run


def add_resources(parser: argparse._ActionsContainer) -> list[argparse.Action]:
    """Add the options for the resources of a job, except `--array`; return them."""
    add = parser.add_argument
    launchers = ("srun", "torchrun", "elastic")
    return [
        add("--nodes", type=positive_int, default=1, metavar="N", help="number of nodes; elastic: the maximum"),
        add("--gpus-per-node", type=natural_int, default=0, metavar="N", help="GPUs per node, one rank each"),
        add("--ranks-per-node", type=positive_int, metavar="N", help="ranks per node; default: --gpus-per-node, or 1"),
        add("--cpus-per-rank", type=positive_int, metavar="N", help="CPUs per rank; default: the cluster's"),
        add("--time", metavar="[D-]HH:MM:SS", help="time limit; default: the partition's"),
        add(
            "--launcher",
            choices=launchers,
            default="srun",
            help="how ranks are started; default: srun, a task per rank",
        ),
        add("--signal", choices=("USR1", "USR2"), default="USR1", help="the scheduler's warning; default: USR1"),
        add(
            "--grace",
            type=positive_int,
            default=120,
            metavar="S",
            help="seconds from the signal to the time limit; default: 120",
        ),
        add(
            "--option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="an sbatch option, such as partition=long",
        ),
        add("--print", action="store_true", help="print the script without writing or submitting it"),
    ]


def run(options: Options) -> None:
    """Submit the job of a command line. Raises InputError before anything is written."""
    submit(options.configs, options.array, options)


def submit(configs: Sequence[str], array: str | None, options: Options) -> None:
    """Submit a job of these configs; with --print, print its script. Raises InputError before anything is written."""
    script = batch_script(
        configs, options.settings, array=array, nodes=options.nodes, gpus_per_node=options.gpus_per_node,
        ranks_per_node=options.ranks_per_node, cpus_per_rank=options.cpus_per_rank, time=options.time,
        launcher=options.launcher, signal=options.signal, grace=options.grace,
        options={name: value if equals else True
                 for name, equals, value in (option.partition("=") for option in options.option)},
    )  # fmt: skip
    print(script.text.rstrip("\n") if options.print else _submitted(script, script.submit()))


def _submitted(script: BatchScript, job: Job) -> str:
    asked, config = script.resources, script.configs[0]
    device = f"{asked.gpus_per_node} GPUs" if asked.gpus_per_node else f"{asked.ranks} CPU ranks"
    folder = os.path.join(config.output_dir, f"{config.name}-seed*" if asked.array else str(config.name))  # noqa: PTH118
    lines = {
        "submitted": f"job {job.id}{f', elements {asked.array}' if asked.array else ''}, by {asked.launcher}",
        "ranks": f"{asked.nodes} nodes × {device} = {asked.world_sizes[-1]}, global batch {config.train.batch_size}",
        "time limit": f"{asked.time or 'the partition’s'}, {asked.signal} {asked.grace} s before",
        "script": job.script, "output": job.output, "run": folder, "watch": f"squeue --job {job.id}",
        "cancel": f"scancel {job.id}",
    }  # fmt: skip
    return "\n".join(f"{key:>10}  {value}" for key, value in lines.items())
