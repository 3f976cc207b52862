"""Exact evaluation: every image once, integers all-reduced, divided last. The same counts at every world size."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.parallel.collectives import sum_ranks
from distcnn.training.views import Views, averaged_logits


@dataclass(frozen=True)
class Evaluation:
    """The result of a whole data set on all ranks; equal on each of them."""

    confusion: NDArray[np.int64]  # [true class, predicted class] counts
    top5_correct: int  # the true class is among the five best (or all, if there are fewer)
    loss_sum: float  # cross-entropy in nats, summed over the images
    classes: tuple[str, ...]
    split: str = "test"  # or "holdout"

    @property
    def correct(self) -> int:
        """Images whose best class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """Images evaluated: the data set's size."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """correct / total."""
        return self.correct / self.total

    def per_class(self) -> dict[str, float | None]:
        """Accuracy of each class; None where the data set holds no image of it."""
        totals = self.confusion.sum(axis=1)
        hits = np.diag(self.confusion)
        return {c: float(h / t) if t else None for c, h, t in zip(self.classes, hits, totals, strict=True)}

    def record(self) -> dict[str, Any]:
        """Plain values, as metrics.jsonl and `distcnn evaluate` give them."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "top5_correct": self.top5_correct,
            "top5_accuracy": self.top5_correct / self.total,
            "loss": self.loss_sum / self.total,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[int, Tensor, Tensor]],
    num_batches: int,
    classes: tuple[str, ...],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    views: Views = "one",
    split: str = "test",
) -> Evaluation:
    """Evaluate the unwrapped `model` on this rank's (batch number, images, labels), of `num_batches` over all ranks.

    Called on all ranks, also on those without a batch: the two all-reduces stand behind the loop. The loss of
    each batch travels in a place of its own and is summed in the batches' order, so that it is the same to the
    bit at every world size.
    """
    k = len(classes)
    counts = torch.zeros(k * k + 1, dtype=torch.int64, device=device)  # the confusion matrix, and top-5 hits
    losses = torch.zeros(num_batches, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for number, images, labels in batches:
        with autocast():
            logits = averaged_logits(model, images, views)  # [n, classes]
        losses[number] = F.cross_entropy(logits, labels, reduction="none").double().sum()
        cell = labels * k + logits.argmax(dim=1)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        best = logits.topk(min(5, k), dim=1).indices
        counts[-1] += (best == labels[:, None]).sum()
    model.train(was_training)
    sum_ranks(counts)
    sum_ranks(losses)
    host = counts.cpu().numpy()
    confusion = host[:-1].reshape(k, k).copy()
    return Evaluation(confusion, int(host[-1]), float(np.sum(losses.cpu().numpy())), classes, split)
