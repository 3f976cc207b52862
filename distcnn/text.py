"""Parts of messages: counts, lists, printable names, missing packages."""

from collections.abc import Sequence
from importlib.util import find_spec

_PACKAGES = {"sklearn": "scikit-learn"}  # module → package, where they differ


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 rank`, `2 ranks`, `1,000 ranks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[object], most: int | None = None) -> str:
    """Join items by commas; if there are more than `most`, the first ones and the number of the rest."""
    more = 0 if most is None else len(items) - most
    shown = ", ".join(map(str, items[:most]))
    return f"{shown} and {more} more" if more > 0 else shown


def listed_ranks(ranks: Sequence[int], most: int | None = None) -> str:
    """Name ranks: `rank 3`, `ranks 0, 1 and 6 more`."""
    return f"rank{'' if len(ranks) == 1 else 's'} {listed(ranks, most)}"


def printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor or cannot be encoded."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def missing(extra: str, *modules: str) -> str:
    """Say which packages of distcnn's optional `extra` are missing; "" if all `modules` are installed."""
    absent = [_PACKAGES.get(name, name) for name in modules if find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'distcnn[{extra}]'" if absent else ""
