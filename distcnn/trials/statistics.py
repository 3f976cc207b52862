"""What some trials add up to: mean, standard deviation, confidence interval, and a paired test of two configs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of n values; what takes two of them is None for one."""

    n: int
    mean: float
    deviation: float | None  # standard deviation of the sample, with n - 1
    low: float | None  # the confidence interval of the mean, by Student's t
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value. The interval supposes that they are distributed about normally."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(n, mean, None, None, None)
    from scipy import stats

    deviation = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / n**0.5
    return Summary(n, mean, deviation, mean - half, mean + half)


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """The second minus the first, seed by seed, with the two-sided p-value of the paired t-test.

    Pairs that all differ by the same have no p-value: None, as with a single pair.
    """
    differences = np.subtract(second, first)
    found = asdict(summary(differences.tolist()))
    if len(differences) < 2 or np.ptp(differences) == 0:
        return {**found, "p": None}
    from scipy import stats

    return {**found, "p": float(stats.ttest_rel(second, first).pvalue)}
