"""`distcnn train`, with its log, its console and all that a run does between two steps."""

import tempfile
from pathlib import Path

from benchmarks.images import MEAN, PADDING, STD
from benchmarks.scenarios import SETTINGS, Job
from benchmarks.trials import THREADS
from distcnn.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "simple_cnn.yaml"


def train(job: Job) -> None:
    scenario = job.scenario
    command(CONFIG, {
        "data.source": "folder", "data.root": job.root, "data.mean": [*MEAN], "data.std": [*STD],
        "data.augment": [{"crop": {"padding": PADDING}}, "flip"] if scenario.augmented else [],
        "model.name": scenario.network, "train.batch_size": scenario.batch, "optim.name": scenario.optimizer,
        "optim.lr": 0.001 if scenario.optimizer == "adam" else 0.01, "train.drop_last": True,
        "train.threads": THREADS, "train.duration": f"{job.total}step", "eval.every": f"{job.total}step",
        "data.max_test": 500, "tracking.wandb": "disabled",
    } | SETTINGS[job.name][job.precision])  # fmt: skip


def command(config: Path, settings: dict[str, object]) -> None:
    """Run `distcnn train CONFIG --key value …` in this process, into a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
        ]
        if code := main(["train", str(config), *arguments, f"--output_dir={folder}"]):
            raise SystemExit(code)
