"""The keys of a config, and their documentation for `--help`."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from distcnn.config.schema import Config

SECTIONS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)
}
KEYS: list[str] = [
    f"{section}.{f.name}" if section else f.name
    for section, cls in [("", Config), *SECTIONS.items()]
    for f in dataclasses.fields(cls)
    if f"{f.name}" not in SECTIONS or section
]


def documented_keys() -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, description) of every key."""
    for section, cls in [("", Config), *SECTIONS.items()]:
        for name, info in cls.__pydantic_fields__.items():
            if info.description:
                key = f"{section}.{name}" if section else name
                default = info.get_default(call_default_factory=True, validated_data={})
                yield key, _type_name(info.annotation), shown(default), info.description


def _type_name(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", None)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if choices and choices[0] is bool:
        return "true|false|" + "|".join(choices[1].__args__)
    text = str(getattr(annotation, "__name__", annotation)) if not choices else str(annotation)
    if "tuple" in text and "dict" in text:
        return "names, or {name: {argument: value}}"
    if text.startswith("tuple[str"):
        return "keys"
    if "tuple" in text:
        return "[r, g, b]"
    for kind in ("dict", "float", "int", "str"):
        if kind in text:
            return {"dict": "mapping"}.get(kind, kind)
    return text


def shown(value: Any) -> str:
    """Format a value as in a config file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value else str(list(value) if isinstance(value, tuple) else value)


MAPPINGS = {key for key, kind, *_ in documented_keys() if kind == "mapping"}  # of arguments, as optim.args
# Which key names the part that a mapping's arguments are for: {"optim.name": "optim.args", "data.source": "data.args"}
PARTS = {next(key for key in KEYS if key in (f"{args[:-5]}.name", f"{args[:-5]}.source")): args for args in MAPPINGS}
TEXTS = {key for key, kind, *_ in documented_keys() if kind == "str"}  # taken from the command line as they are typed
