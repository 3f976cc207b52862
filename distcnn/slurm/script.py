"""The batch script: sbatch's options, the job's values and the shell files of slurm/, in one file."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from distcnn.errors import InputError
from distcnn.slurm.resources import Resources

_ABOUT = {
    "srun": "one task per rank, no agent",
    "torchrun": "one torchrun agent per node",
    "elastic": "torchrun on the nodes available; if any but the first is lost, the others continue",
}


def folder() -> Path:
    """Return the folder of the shell files: inside an installed package, or slurm/ in a clone."""
    installed = Path(__file__).parent / "scripts"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "slurm"


def script_text(resources: Resources, name: str, output: str, words: Sequence[str]) -> str:
    """Return a self-contained batch script.

    `name` is the job's name, `output` its log's path with sbatch's patterns; `words` are the configs and settings to
    train with. Raises InputError if a value cannot be written on one line.
    """
    head = "\n".join([*_options(resources, name, output), *_values(resources), f"set -- {shlex.join(words)}"])
    shell = [(folder() / file).read_text(encoding="utf-8") for file in ("rules.sh", "job.sh")]
    # ShellCheck accepts this line only at the top of a file.
    return "\n".join([f"{head}\n", *(text.removeprefix("# shellcheck shell=bash\n") for text in shell)])


def _options(resources: Resources, name: str, output: str) -> Iterator[str]:
    yield "#!/bin/bash"
    yield f"# Written by `distcnn slurm`: {_ABOUT[resources.launcher]}."
    yield "# If requeued or submitted again, it continues the run of that name."
    tasks, elastic = (resources.ranks if resources.launcher == "srun" else 1), resources.launcher == "elastic"
    lines = {
        "job-name": name,
        "nodes": f"1-{resources.nodes}" if elastic else resources.nodes,
        "ntasks-per-node": None if elastic else tasks,  # if set, Slurm allocates only the minimum number of nodes
        "gpus-per-node": resources.gpus_per_node or None,
        "cpus-per-task": resources.cpus_per_rank and resources.cpus_per_rank * resources.ranks // tasks,
        "time": resources.time,
        "array": resources.array,
        "output": output,
        "open-mode": "append",
        "requeue": True,
        "no-kill": elastic,
        "signal": f"B:{resources.signal}@{resources.grace}",  # to the batch shell alone
        **resources.options,
    }
    for key, value in lines.items():
        if value is True:
            yield f"#SBATCH --{key}"
        elif value is not None and value is not False:
            if not str(value).isprintable():
                raise InputError(f"{key} = {value!r}: contains characters that cannot be in a line of a batch script")
            yield f"#SBATCH --{key}={shlex.quote(str(value))}"


def _values(resources: Resources) -> Iterator[str]:
    yield f"export DISTCNN_GRACE={resources.grace} PYTHON={shlex.quote(sys.executable)}"
    element = '"$SLURM_ARRAY_TASK_ID"' if resources.array else "''"
    yield f"mode={resources.launcher} ranks_per_node={resources.ranks} element={element} asked=''"
