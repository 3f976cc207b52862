"""Metrics of an evaluation, one file each. No torch in here."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distcnn.config.schema import Config, named
from distcnn.registry import Problem, Registry
from distcnn.runs.records import EVAL_FIELDS

# A function (logits [n, k] float32, targets [n] int64, *, arguments) -> [], its sum over the n images, which is summed
# over all images and divided by their number. Or a class, made once with its arguments and then called like one, with a
# method `result(sums) -> float` if it does something else with the sums, which may then be of any shape.
METRICS = Registry(
    "metrics",
    {"top_k": "distcnn.training.metrics.top_k:top_k", "f1": "distcnn.training.metrics.f1:F1"},
    called_with=2,
)


def key_of(name: str, args: Mapping[str, Any]) -> str:
    """The name of a metric in records: its own, and its arguments' values: `top_k_3` for `{top_k: {k: 3}}`."""
    words = [name.rpartition(":")[2], *(f"{value}" for value in args.values())]
    return "_".join(re.sub(r"[^\w.-]+", "_", word) for word in words)


def problems(config: Config) -> Iterator[Problem]:
    """Say what is wrong with `eval.metrics`: names, arguments, and two results of one name."""
    keys = []
    for name, args in map(named, config.eval.metrics):
        yield from METRICS.problems(name, args, config, "eval.metrics")
        keys.append(key_of(name, args))
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        yield ("eval.metrics",), f"{key} is given twice"
    for key in dict.fromkeys(key for key in keys if key in EVAL_FIELDS):
        yield ("eval.metrics",), f"{key} is part of every evaluation already: leave it out, or rename yours"
