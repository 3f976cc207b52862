"""Summary statistics over trials: mean, standard deviation, confidence interval, and a paired test of two configs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Summary statistics of n values; those that need two values are None for one."""

    n: int
    mean: float
    deviation: float | None  # the sample standard deviation, with n - 1
    low: float | None  # the confidence interval of the mean, by Student's t
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Summarise at least one value. The interval assumes a normal distribution."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(n, mean, None, None, None)
    deviation = float(np.std(values, ddof=1))
    low, high = stats.t.interval(LEVEL, n - 1, mean, deviation / n**0.5) if deviation else (mean, mean)
    return Summary(n, mean, deviation, float(low), float(high))


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Summarise second minus first, seed by seed, with `p`, the two-sided p-value of the paired t-test.

    `p` is None for a single pair, and if all differences are equal.
    """
    differences = np.subtract(second, first)
    varying = len(differences) > 1 and np.ptp(differences) > 0
    p = float(stats.ttest_rel(second, first).pvalue) if varying else None
    return {**asdict(summary(differences.tolist())), "p": p}


def summarise(rows: Mapping[str, Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
    """Summarise {config: {seed: eval record}} as {"configs": {config: its trials, and a Summary of each metric}}.

    Two configs with shared seeds also give their "difference" in accuracy, by `paired`.
    """
    found: dict[str, Any] = {"configs": {}}
    for name, by_seed in rows.items():
        one: dict[str, Any] = {"trials": [{"seed": seed, **record} for seed, record in sorted(by_seed.items())]}
        for key in ("accuracy", "loss"):
            if values := [record[key] for record in by_seed.values() if record[key] is not None]:
                one[key] = asdict(summary(values))
        found["configs"][name] = one
    if len(rows) == 2:
        (first, a), (second, b) = rows.items()
        if shared := sorted(a.keys() & b.keys()):
            test = paired(*([each[seed]["accuracy"] for seed in shared] for each in (a, b)))
            found["difference"] = {"of": [second, first], "seeds": shared, **test}
    return found
