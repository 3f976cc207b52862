"""Evaluate a table of logits: each image names its row."""

from contextlib import nullcontext

import torch
from torch import nn

from distcnn.data.samplers import evaluation_batches
from distcnn.training.evaluate import WholeSet, evaluate

CPU = torch.device("cpu")


class Table(nn.Module):
    """Gives the row of logits that an image names; out of evaluation mode it gives nonsense."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        rows = self.logits[x.long()]
        return rows * float("nan") if self.training else rows


def evaluated(logits, labels, batch_size=7, classes=None, metrics=()):
    cut = evaluation_batches(len(labels), batch_size)
    names = tuple(f"c{i}" for i in range(classes or logits.shape[1]))
    batches = [(number, torch.tensor(rows), labels[rows.start : rows.stop]) for number, rows in cut]
    whole = WholeSet(len(labels), batch_size, names, CPU)
    return evaluate(Table(logits), batches, whole, nullcontext, metrics=metrics)
