"""Metrics of an evaluation, one file each. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distcnn.config.schema import Config
from distcnn.config.types import named
from distcnn.registry import Problem, Registry
from distcnn.runs.records import EVAL_FIELDS

# A function (logits [n, k] float32, targets [n] int64, *, arguments) -> [], a sum over the n images; the metric is the
# mean over all images. Or a class, constructed once with its arguments and called like one; with a method
# `result(sums) -> float`, its sums may have any shape, and the metric is their result. Or a class with a method
# `compute(logits, targets) -> float`, which gets those of all images at once, as NumPy arrays, on every rank. They must
# not keep state between calls, as each rank calls them on its own batches. Sums are all-reduced per batch, in float64.
METRICS = Registry(
    "metrics",
    {
        "top_k": "distcnn.training.metrics.top_k:top_k",
        "precision": "distcnn.training.metrics.per_class:Precision",
        "recall": "distcnn.training.metrics.per_class:Recall",
        "f1": "distcnn.training.metrics.per_class:F1",
        "calibration_error": "distcnn.training.metrics.calibration:CalibrationError",
        "auroc": "distcnn.training.metrics.auroc:AUROC",
    },
    called_with=2,
)


def key_of(name: str, args: Mapping[str, Any]) -> str:
    """Return the name of a metric in records, with the values of its arguments: `top_k_3` for `{top_k: {k: 3}}`."""
    words = [name.rpartition(":")[2], *(f"{value}" for value in args.values())]
    return "_".join(re.sub(r"[^\w.-]+", "_", word) for word in words)


def problems(config: Config) -> Iterator[Problem]:
    """Check `eval.metrics`: names, arguments, and duplicate names in records."""
    keys = []
    for name, args in map(named, config.eval.metrics):
        yield from METRICS.problems(name, args, config, "eval.metrics")
        keys.append(key_of(name, args))
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        yield ("eval.metrics",), f"two metrics would be named {key} in records: leave one out, or rename it"
    for key in dict.fromkeys(key for key in keys if key in EVAL_FIELDS):
        yield ("eval.metrics",), f"{key} is part of every evaluation already: leave it out, or rename yours"
