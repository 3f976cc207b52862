"""Train a run: the entry point of both the command line and the Python API."""

from dataclasses import dataclass
from pathlib import Path

from distcnn.checkpoint.state import Progress
from distcnn.config.plan import Plan
from distcnn.config.schema import Config
from distcnn.config.settings import Settings
from distcnn.distributed.signals import StopSignal
from distcnn.distributed.stop import StopRequest
from distcnn.distributed.world import World
from distcnn.training.build import checked
from distcnn.training.evaluate import Evaluation
from distcnn.training.loop import fit
from distcnn.training.run import Run


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    folder: Path
    plan: Plan
    state: Progress
    evaluation: Evaluation  # of the final weights


def train(config: Config, world: World, stop: StopRequest | None = None) -> Result:
    """Train as configured. A collective: all ranks must call it.

    Raises InputError for invalid input, StoppedError on all ranks after a signal that `stop` recorded on any, and
    DistcnnError if the run fails.
    """
    run = Run(config, world, stop)
    with run:
        evaluation = fit(run)
    return Result(run.folder, run.plan, run.progress, evaluation)


def train_from_settings(settings: Settings, world: World, signal: StopSignal) -> Result:
    """Check the settings against this machine, and train. Raises what `train` raises."""
    return train(checked(settings, world), world, StopRequest(signal))
