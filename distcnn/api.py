"""The Python API of training and evaluation: as the command line, without its exit codes and signal handlers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distcnn.config.schema import Config
from distcnn.config.settings import load_settings, saved_settings, to_dict
from distcnn.distributed.world import world_from
from distcnn.inference.evaluate import evaluate_checkpoint
from distcnn.training.build import checked
from distcnn.training.train import Result
from distcnn.training.train import train as train_config


def train(config: Config | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None) -> Result:
    """Train a model. Call it on every rank of the launcher.

    `config` is a YAML file, a Config, or a mapping, nested like the file or with dotted keys such as
    `{"optim.lr": 0.1}`; `overrides` has dotted keys. Raises InputError with every problem found, DistcnnError if the
    run fails.
    """
    if isinstance(config, str | Path):
        settings = load_settings(Path(config))
    else:
        settings = saved_settings(to_dict(config) if isinstance(config, Config) else config, "config")
    world = world_from(os.environ)
    return train_config(checked(settings.update(overrides or {}), world), world)


def evaluate(model: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate a run folder's newest checkpoint, or a file, on the run's test images. Call it on every rank.

    Returns an eval record as in metrics.jsonl: integers `correct` and `total`, `accuracy` in 0…1, `loss` in nats per
    image, and so on. Raises InputError.
    """
    return evaluate_checkpoint(Path(model), overrides or {}, world_from(os.environ))
