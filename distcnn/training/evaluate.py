"""Exact evaluation: every image once; counts, and sums per batch, are all-reduced; divided last."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.config.schema import Config
from distcnn.data.loaders.evaluation import EvaluationLoader
from distcnn.distributed.collectives import sum_ranks
from distcnn.distributed.memory import evaluation_fixes, explain_out_of_memory
from distcnn.distributed.watch import Watch
from distcnn.engine.master_weights import autocast
from distcnn.training.metrics.build import Metric
from distcnn.training.views import Views, averaged_logits


@dataclass(frozen=True)
class Evaluation:
    """The result on a whole data set, equal on all ranks."""

    confusion: NDArray[np.int64]  # [true class, predicted class] counts
    top5_correct: int  # images whose class is among the five most probable
    loss_sum: float  # cross-entropy in nats, summed over the images
    classes: tuple[str, ...]
    best: NDArray[np.int64]  # [images, k]: the most probable classes of each image, k = 5 or all, best first
    probabilities: NDArray[np.float32]  # [images, k], of `best`
    split: str = "test"  # or "holdout"
    metrics: Mapping[str, float] = field(default_factory=dict)  # by name, as the config asks for them

    @property
    def correct(self) -> int:
        """Images whose most probable class is the true one."""
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
        """Accuracy of each class; None if the data set has no image of it."""
        totals = self.confusion.sum(axis=1)
        hits = np.diag(self.confusion)
        return {c: float(h / t) if t else None for c, h, t in zip(self.classes, hits, totals, strict=True)}

    def record(self) -> dict[str, Any]:
        """Convert to plain values, as in metrics.jsonl and the output of `distcnn evaluate`."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "top5_correct": self.top5_correct,
            "top5_accuracy": self.top5_correct / self.total,
            "loss": self.loss_sum / self.total,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
            **self.metrics,
        }


@dataclass(frozen=True)
class WholeSet:
    """The data set that the ranks evaluate together, and this rank's device."""

    images: int
    batch_size: int
    classes: tuple[str, ...]
    device: torch.device
    split: str = "test"  # or "holdout"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[int, Tensor, Tensor]],
    whole: WholeSet,
    precision_context: Callable[[], AbstractContextManager[Any]],
    views: Views = "one",
    wait: Callable[[], object] = lambda: None,
    metrics: Sequence[Metric] = (),
) -> Evaluation:
    """Evaluate the unwrapped `model` on this rank's (batch number, images, labels) of the `whole` set.

    Called on all ranks, also on those without a batch: the all-reduces come after the loop. Each batch and each image
    has its own slot in the tensors that are all-reduced, with zeros on all other ranks, and the sums of the loss and
    the metrics are added up in the batches' order: the result is the same to the bit at every world size. `wait` is
    called before the host reads from the device: where a rank has died, it may raise instead of waiting without end.
    """
    k, size, batch_size, device = len(whole.classes), whole.images, whole.batch_size, whole.device
    shown = min(5, k)
    counts = torch.zeros(k * k + 1, dtype=torch.int64, device=device)  # the confusion matrix, and top-5 hits
    sizes = [1, *(metric.shape.numel() for metric in metrics)]
    sums = torch.zeros(-(-size // batch_size), sum(sizes), dtype=torch.float64, device=device)  # of loss and metrics
    kept = size if any(metric.needs_outputs for metric in metrics) else 0
    outputs = torch.zeros(kept, k, device=device), torch.zeros(kept, dtype=torch.int64, device=device)
    best = torch.zeros(size, shown, dtype=torch.int64, device=device)
    probabilities = torch.zeros(size, shown, device=device)
    was_training = model.training
    model.eval()
    for number, images, labels in batches:
        with precision_context():
            logits = averaged_logits(model, images, views)  # [n, classes]
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
        sums[number] = torch.cat([loss[None], *(metric.sums(logits.float(), labels) for metric in metrics)])
        cell = labels * k + logits.argmax(dim=1)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        rows = slice(number * batch_size, number * batch_size + len(labels))
        torch.topk(logits.softmax(dim=1), shown, dim=1, out=(probabilities[rows], best[rows]))
        counts[-1] += (best[rows] == labels[:, None]).sum()
        if kept:
            outputs[0][rows], outputs[1][rows] = logits, labels
    model.train(was_training)
    for own in (counts, sums, best, probabilities, *(outputs if kept else ())):
        sum_ranks(own)
    wait()
    host = counts.cpu().numpy()
    confusion = host[:-1].reshape(k, k).copy()
    # Each row is summed on its own, so that the loss does not depend on the configured metrics.
    loss_sum, *totals = np.split(sums.T.contiguous().cpu().numpy().sum(axis=1), np.cumsum(sizes)[:-1])
    of_all = (outputs[0].cpu().numpy(), outputs[1].cpu().numpy()) if kept else None
    results = {metric.name: metric.result(own, size, of_all) for metric, own in zip(metrics, totals, strict=True)}
    return Evaluation(
        confusion, int(host[-1]), float(loss_sum[0]), whole.classes, best.cpu().numpy(), probabilities.cpu().numpy(),
        whole.split, results,
    )  # fmt: skip


def evaluate_on(
    model: nn.Module, test: EvaluationLoader, config: Config, watch: Watch, metrics: Sequence[Metric]
) -> Evaluation:
    """Evaluate on a run's test images, or held-out images, as configured. A collective; equal on all ranks."""
    data, device = test.data, test.preprocess.device
    whole = WholeSet(len(data), test.batch_size, data.classes, device, "holdout" if config.data.holdout else "test")
    with explain_out_of_memory(device, lambda: evaluation_fixes(test.batch_size)):
        return evaluate(
            model, watch.each(test, "evaluation"), whole, lambda: autocast(device, config.train.precision),
            config.eval.views, watch.wait_for_device, metrics,
        )  # fmt: skip
