"""What a Python program calls: the same as the command line, without its exit codes and signal handlers."""

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
    """Train, in this process's place among those of its launcher; on every rank alike.

    `config` is a YAML file, a Config, or a mapping as nested as the file, or of dotted keys such as
    `{"optim.lr": 0.1}`; `overrides` are dotted keys. Raises InputError with every problem found, DistcnnError for a run
    that failed.
    """
    if isinstance(config, str | Path):
        settings = load_settings(Path(config))
    else:
        settings = saved_settings(to_dict(config) if isinstance(config, Config) else config, "config")
    world = world_from(os.environ)
    return train_config(checked(settings.update(overrides or {}), world), world)


def evaluate(model: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate a run folder's newest checkpoint, or a file, on the run's test images; on every rank alike.

    Returns the eval line of metrics.jsonl: integers `correct` and `total`, `accuracy` in 0…1, `loss` in nats an image,
    and so on. Raises InputError.
    """
    return evaluate_checkpoint(Path(model), overrides or {}, world_from(os.environ))
