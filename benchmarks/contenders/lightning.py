"""PyTorch Lightning, with everything off that costs time beside the training."""

import logging
import tempfile
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.images import network, optimizer, usual_batches
from benchmarks.scenarios import Job


class Classifier(LightningModule):
    def __init__(self, job: Job):
        super().__init__()
        self.job, self.network = job, network(job)

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> Optimizer:
        return optimizer(self.network, self.job)


def train(job: Job) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", devices=1, precision="bf16-mixed" if job.precision == "bf16" else "32-true",
            max_steps=job.total, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            plugins=[LightningEnvironment()],  # it would ask Slurm's programs where they are installed
        )  # fmt: skip
        trainer.fit(Classifier(job), usual_batches(job))
