"""The types of values in a config, each with its check: durations, numbers, lists of parts."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ep|step|img)")


def parse_duration(text: str) -> tuple[float, str]:
    """`"10ep"` → `(10.0, "ep")`; the units are `ep`, `step` and `img`. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or (match[2] != "ep" and "." in match[1]):
        raise ValueError("a duration is a number and a unit: 10ep, 0.5ep, 500step or 200000img")
    return float(match[1]), match[2]


def _duration(text: str) -> str:
    parse_duration(text)
    return text.strip()


def _some_duration(text: str) -> str:
    if parse_duration(text)[0] == 0:
        raise ValueError("must be longer than zero")
    return text.strip()


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Duration = Annotated[str, AfterValidator(_some_duration)]  # longer than zero
DurationOrZero = Annotated[str, AfterValidator(_duration)]
Rgb = tuple[Float, Float, Float]


def named(item: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An item of a PartList as (name, arguments): `"flip"` → `("flip", {})`. Raises ValueError."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, args),) = item.items()
        if isinstance(name, str) and isinstance(args, Mapping | None):
            return name, dict(args or {})
    raise ValueError("an item is a name, or one name with its arguments: {NAME: {argument: value}}")


def _part_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        value = [value]
    return tuple({name: args} if args else name for name, args in map(named, value))


# Parts of a Registry by their names: [flip, {crop: {padding: 4}}].
PartList = Annotated[tuple[str | dict[str, dict[str, Any]], ...], BeforeValidator(_part_list)]
