"""A config as nested sections and as dotted keys: `{"optim": {"lr": 0.1}}` and `{"optim.lr": 0.1}`."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """A setting that is not what it was."""

    key: str  # dotted
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before}, is {self.now}"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values by their dotted keys. A mapping within a section, as `model.args`, is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{leaf}": one for leaf, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of dotted keys: `section.key`, or `section.key.argument` of a mapping within a section."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, leaf = key.split(".", 2)
        place = tree
        for name in outer:
            place = place.setdefault(name, {})
        place[leaf] = value
    return tree


def diff(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The settings of `now` that `before` does not hold alike; what only `before` holds is left out."""
    flat = flatten(before)
    return [Change(key, flat.get(key), value) for key, value in flatten(now).items() if flat.get(key) != value]
