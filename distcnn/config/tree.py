"""A config as nested sections and as dotted keys: `{"optim": {"lr": 0.1}}` and `{"optim.lr": 0.1}`."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """A setting that differs between two configs."""

    key: str  # dotted
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before}, is {self.now}"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by dotted key. A mapping within a section, such as `model.args`, is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{leaf}": one for leaf, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections, from keys `section.key`, or `section.key.argument` for a mapping within a section."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, leaf = key.split(".", 2)
        place = tree
        for name in outer:
            place = place.setdefault(name, {})
        place[leaf] = value
    return tree


def diff(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the settings of `now` that differ from `before`; parts' arguments are compared one by one.

    Keys that only `before` has are ignored, except arguments.
    """
    old, new = _with_arguments(before), _with_arguments(now)
    new |= {key: None for key in old if key.count(".") > 1 and key not in new}
    return [Change(key, old.get(key), value) for key, value in new.items() if old.get(key) != value]


def _with_arguments(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten, including the mappings within a section."""
    flat: dict[str, Any] = {}
    for key, value in flatten(tree).items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat
