"""Submit a run, or an array of runs, to Slurm."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcnn.config.schema import Config
from distcnn.config.settings import load_settings, saved_settings, to_dict, to_yaml
from distcnn.errors import InputError
from distcnn.slurm.resources import Resources, elements
from distcnn.slurm.script import script_text
from distcnn.training import parts

OneConfig = str | Path | Config | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Job:
    """A job that has been submitted."""

    id: str  # as squeue and scancel take it
    name: str
    script: Path
    output: str  # the path of its log; for an array, with * in place of the element


@dataclass(frozen=True)
class BatchScript:
    """A checked batch script, ready to submit."""

    text: str
    path: Path  # where `submit` writes it
    name: str  # the job's name
    output: str  # the path of its log, with sbatch's patterns
    resources: Resources
    configs: tuple[Config, ...]  # several only for an array
    files: Mapping[Path, str]  # configs that `submit` writes

    def submit(self) -> Job:
        """Write the script and call sbatch. Raises InputError if a file cannot be written or sbatch refuses."""
        try:
            for path, text in {**self.files, self.path: self.text}.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            done = subprocess.run(["sbatch", "--parsable", str(self.path)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise InputError(
                f"sbatch: not found on this machine; {self.path} is written: submit it where Slurm is installed"
            ) from None
        except OSError as error:
            raise InputError(
                f"output_dir = {self.path.parent}: {error.strerror}; give a folder that can be written"
            ) from error
        if done.returncode:
            raise InputError(f"sbatch {self.path}: {' '.join(done.stderr.split())}")
        number = done.stdout.strip().split(";")[0]  # with several clusters: JOB;CLUSTER
        output = self.output.replace("%x", self.name).replace("%a", "*")
        return Job(number, self.name, self.path, output.replace("%j", number).replace("%A", number))


def submit(config: OneConfig | Sequence[OneConfig], overrides: Overrides = (), **resources: Any) -> Job:
    """Submit a run to Slurm as a job that saves and requeues itself at its time limit or preemption; return the job.

    >>> distcnn.slurm.submit("a.yaml", {"optim.lr": 0.1}, nodes=2, gpus_per_node=4, time="04:00:00")  # doctest: +SKIP
    Job(id='4711', name='a', script=PosixPath('runs/a.sbatch'), output='runs/a-4711.out')

    `config` is a YAML file, a Config, or a mapping with nested or dotted keys; with `array`, also a list of these, one
    per element. `overrides` is a mapping of dotted keys, or command-line words (`["--optim.lr", "0.1"]`). Before
    anything is written, the config is checked for the number of ranks that the job will have, including the parts that
    it names, which are imported. The script is written to `<output_dir>/<name>.sbatch`, next to the log. A config that
    is not a file, or has overrides by mapping, is written to `<output_dir>/<name>.yaml`.

    The other parameters are the job's resources (defaults in brackets):

    - `nodes` [1] (the maximum with launcher="elastic"), `gpus_per_node` [0]
    - `ranks_per_node` [one per GPU, or 1], `cpus_per_rank` [the cluster's default]
    - `time`: the time limit in sbatch's format, such as "04:00:00" [the partition's]
    - `array`: elements such as "0-9", one job per seed or per config
    - `launcher`: "srun" (one task per rank), "torchrun" (one agent per node) or "elastic" (continues with fewer nodes)
    - `signal` ["USR1"] and `grace` [120]: the scheduler's warning signal, and its seconds before the time limit
    - `options`: further sbatch options, such as {"partition": "long", "exclusive": True}

    Raises InputError with every wrong parameter and key, or with sbatch's error message.
    """
    return batch_script(config, overrides, **resources).submit()


def batch_script(config: OneConfig | Sequence[OneConfig], overrides: Overrides = (), **resources: Any) -> BatchScript:
    """Check the parameters of `submit`, and return the script that it would submit. Raises InputError."""
    asked = Resources.checked(resources)
    given = [config] if isinstance(config, str | Path | Config | Mapping) else list(config)
    _check_array(len(given), asked)
    configs = [_checked(one, overrides, asked) for one in given]
    first, words = configs[0], [] if isinstance(overrides, Mapping) else list(overrides)
    paths, files = [], {}
    for one, checked in zip(given, configs, strict=True):
        if isinstance(one, str | Path) and not isinstance(overrides, Mapping):
            paths.append(str(one))
        else:
            paths.append(str(Path(checked.output_dir) / f"{checked.name}.yaml"))
            files[Path(paths[-1])] = to_yaml(checked)
    if asked.array and len(given) == 1:
        words += ["--name", str(first.name)]  # the elements' names begin with it, even if it is set elsewhere
    # Without characters that break sbatch's options or squeue's columns.
    name = re.sub(r"[^\w.+-]", "-", str(first.name)) if len(given) == 1 else "distcnn"
    output = str(Path(first.output_dir) / ("%x-%A_%a.out" if asked.array else "%x-%j.out"))
    return BatchScript(
        text=script_text(asked, name, output, [*paths, *words]),
        path=Path(first.output_dir) / f"{name}.sbatch",
        name=name,
        output=output,
        resources=asked,
        configs=tuple(configs),
        files=files,
    )


def _check_array(configs: int, resources: Resources) -> None:
    """Raise InputError unless there is one config per element, or a single one for all."""
    if configs == 0:
        raise InputError("needs a config")
    if configs > 1 and not resources.array:
        raise InputError(f"{configs} configs: several need an array, 0-{configs - 1}: one job per config")
    last = max(part[-1] for part in elements(resources.array or "0"))
    if last >= configs > 1:
        raise InputError(f"array = {resources.array!r}: there is no config for element {last}; the first is 0")


def _checked(config: OneConfig, overrides: Overrides, resources: Resources) -> Config:
    """Check the config at each world size that the job may have: now, not after hours in the queue."""
    words = () if isinstance(overrides, Mapping) else overrides
    if isinstance(config, str | Path):
        settings = load_settings(Path(config), words)
    else:
        settings = saved_settings(to_dict(config) if isinstance(config, Config) else config, "config")
        settings.read_arguments(words)
    if isinstance(overrides, Mapping):
        settings.update(overrides)
    checked = [settings.check(world_size, parts.problems) for world_size in resources.world_sizes][-1]
    if checked.name is None:
        raise InputError("name = none: give the run a name; a requeued job continues the run of that name")
    return checked
