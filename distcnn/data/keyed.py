"""Counter-based random numbers: a pure function of a key, independent of rank, worker and earlier draws.

Hashes by splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
doi:10.1145/2660193.2660195), so the numbers of any image can be computed on their own.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of splitmix64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the multipliers of splitmix64
_MASK = 2**64 - 1


def keyed(*key: int) -> int:
    """Hash a tuple of integers to a uniformly distributed 64-bit integer."""
    z = 0
    for part in key:
        z = ((z ^ part) + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * _FIRST) & _MASK
        z = ((z ^ (z >> 27)) * _SECOND) & _MASK
        z ^= z >> 31
    return z


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


def uniform(key: int, positions: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Return [n] numbers in [0, 1), one per position; streams are mutually independent."""
    counter = (positions.astype(np.uint64) * np.uint64(8) + np.uint64(stream + 1)) * np.uint64(_GOLDEN)
    return (_mix(np.uint64(key) + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def beta(alpha: float, key: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return [n] samples of Beta(alpha, alpha), one per position, by rejection (Jöhnk 1964, doi:10.1007/BF02613706)."""
    numbers, rest, attempt = np.empty(len(positions)), np.arange(len(positions)), 0
    while len(rest):
        attempt_key = keyed(key, attempt)
        x, y = (np.log1p(-uniform(attempt_key, positions[rest], stream)) / alpha for stream in (0, 1))
        accepted = np.exp(x) + np.exp(y) <= 1
        numbers[rest[accepted]] = np.exp(-np.logaddexp(0, y - x))[accepted]  # e^x / (e^x + e^y)
        rest, attempt = rest[~accepted], attempt + 1
    return numbers
