"""Check the network, loss, optimizer, schedule, augmentation and metrics of a config, on any machine."""

from collections.abc import Iterator

from distcnn.config.schema import Config
from distcnn.data import augment
from distcnn.models import MODELS
from distcnn.optim import OPTIMIZERS, SCHEDULES
from distcnn.registry import Problem
from distcnn.training import metrics
from distcnn.training.losses import LOSSES


def problems(config: Config) -> Iterator[Problem]:
    """Check the parts that need no file, variable or device, so that a job can be checked where it is submitted."""
    for parts, key, named in (
        (MODELS, "model", config.model),
        (LOSSES, "loss", config.loss),
        (OPTIMIZERS, "optim", config.optim),
        (SCHEDULES, "schedule", config.schedule),
    ):
        yield from parts.problems(named.name, named.args, config, f"{key}.name", f"{key}.args")
    yield from augment.problems(config)
    yield from metrics.problems(config)
