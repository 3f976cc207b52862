"""A whole training: what the command line and the Python API both call."""

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
    """What a training leaves behind."""

    folder: Path
    plan: Plan
    state: Progress
    evaluation: Evaluation  # of the final weights


def train(config: Config, world: World, stop: StopRequest | None = None) -> Result:
    """Train as configured; on every rank alike.

    Raises InputError for what the user can mend, StoppedError after a signal that `stop` has noted and all ranks agreed
    on, DistcnnError for a run that failed.
    """
    run = Run(config, world, stop)
    with run:
        evaluation = fit(run)
    return Result(run.folder, run.plan, run.progress, evaluation)


def train_as_told(settings: Settings, world: World, signal: StopSignal) -> Result:
    """Check the settings on this machine, and train until `signal` is one. Raises what `train` raises."""
    return train(checked(settings, world), world, StopRequest(signal))
