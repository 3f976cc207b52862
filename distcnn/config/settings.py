"""A YAML file and `--section.key value` arguments → one checked Config. Every problem is reported at once.

pydantic checks the types and ranges because it reports all errors of a tree together, each with its path;
jsonargparse, the usual choice, stops at the first.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from distcnn.config.rules import Problem, conflicts
from distcnn.config.schema import Config
from distcnn.errors import DeviceError, InputError

COMMAND_LINE = "command line"
_DEEPEST = 20


class Settings:
    """Raw values with the place each came from: `{"optim.lr": (0.1, "x.yaml:7")}`, later ones winning."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, str]] = {}
        self.problems: list[str] = []

    def read_yaml(self, path: Path) -> "Settings":
        """Add a file's values. A key given twice, which YAML would let pass, is a problem."""
        try:
            root = compose(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}: give the path of a YAML config, as in configs/") from None
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if root is not None:
            self._add(root, "", path)
        return self

    def _add(self, node: yaml.MappingNode, prefix: str, path: Path) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = prefix + str(key_node.value)
            place = f"{path}:{key_node.start_mark.line + 1}"
            if key in seen:
                self.problems.append(f"{key} ({place}): given twice")
            seen.add(key)
            if key in SECTIONS and isinstance(value_node, yaml.MappingNode):
                self._add(value_node, key + ".", path)
                continue
            try:
                self.values[key] = (construct(value_node), place)
            except ValueError as error:
                self.problems.append(f"{key} ({place}): {error}")
            for line, twice in _given_twice(value_node):
                self.problems.append(f"{key} ({path}:{line}): {twice} is given twice")

    def read_arguments(self, arguments: Sequence[str]) -> "Settings":
        """Add `--section.key value` or `--section.key=value`; a value is read as YAML, where the key is not a text."""
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            if not argument.startswith("--"):
                self.problems.append(
                    f"{argument} ({COMMAND_LINE}): not expected here; settings are --section.key value"
                )
                continue
            key, equals, text = argument[2:].partition("=")
            if not equals:
                text = "" if not rest or rest[0].startswith("--") else rest.pop(0)
                if text == "":
                    self.problems.append(f"{key} ({COMMAND_LINE}): needs a value: --{key} VALUE")
                    continue
            if key in TEXTS and text not in ("", "null", "~"):
                self.values[key] = (text, COMMAND_LINE)
                continue
            try:
                self.values[key] = (yaml.safe_load(text), COMMAND_LINE)
            except (yaml.YAMLError, ValueError):
                self.values[key] = (text, COMMAND_LINE)
        return self

    def update(self, overrides: "Overrides") -> "Settings":
        """Add values by their dotted keys, or other Settings."""
        if isinstance(overrides, Settings):
            self.values.update(overrides.values)
            self.problems += overrides.problems
        else:
            self.values.update({key: (value, "overrides") for key, value in overrides.items()})
        return self

    def default(self, key: str, value: Any) -> "Settings":
        """Add a value that everything given before it overrides."""
        self.values.setdefault(key, (value, "default"))
        return self

    def check(
        self,
        world_size: int,
        environment: Callable[[Config], Iterable[Problem]] = lambda _: (),
        device: Callable[[Config], Iterable[Problem]] = lambda _: (),
    ) -> Config:
        """The Config these values make at that world size. Raises InputError with every problem.

        `environment` tells what does not fit the machine, such as a missing folder; `device` what the device of this
        rank cannot do, which other ranks may not have: then it is a DeviceError.
        """
        problems, doubtful = list(self.problems), set[str]()
        values = {key: value for key, (value, _) in self.values.items()}
        for key in [key for key in values if key not in KEYS]:
            del values[key]
            near = _nearest(key)
            doubtful.update(known for known in KEYS if known in near or known.split(".")[0] in near)
            hint = f"did you mean {near[0]}?" if near else "`distcnn train --help` lists all keys"
            if key in SECTIONS:
                hint = "is a section: give its keys, indented below it"
            problems.append(f"{key} ({self.values[key][1]}): {'' if key in SECTIONS else 'unknown key; '}{hint}")
        try:
            config = _ADAPTER.validate_python(_nest(values))
        except ValidationError as error:
            for key, message in _messages(error):
                problems.append(f"{key} = {_shown(values.pop(key))} ({self.values[key][1]}): {message}")
                doubtful.add(key)
            # The rest is checked all the same, with the failing keys at their defaults, to report all at once.
            config = _ADAPTER.validate_python(_nest(values))

        def told(found: Iterable[Problem]) -> list[str]:
            return [f"{self._given(config, keys)}: {text}" for keys, text in found if doubtful.isdisjoint(keys)]

        problems += told(conflicts(config, world_size)) + told(environment(config))
        if own := told(device(config)):
            raise DeviceError(problems + own)
        if problems:
            raise InputError(problems)
        return config

    def _given(self, config: Config, keys: Iterable[str]) -> str:
        return ", ".join(f"{key} = {_shown(value_at(config, key))} ({self._place(key)})" for key in keys)

    def _place(self, key: str) -> str:
        return self.values[key][1] if key in self.values else "default"


class _Loader(yaml.SafeLoader):
    """Refuses, before they are read, what makes a short file cost hours or gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # nine of nine of nine … would make billions of values
            raise ValueError("YAML's aliases (*name) are not taken; write the value out")
        deeper = self.check_event(yaml.CollectionStartEvent)
        if self.depth + deeper > _DEEPEST:  # PyYAML's time grows with the square of it
            raise ValueError(f"nested more than {_DEEPEST} levels deep; a config has two or three")
        self.depth += deeper
        node = super().compose_node(parent, index)
        self.depth -= deeper
        return node


def compose(data: bytes) -> yaml.MappingNode | None:
    """The mapping that a YAML file holds, None where it is empty. Raises ValueError with what is wrong with it."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError("should hold sections such as `train:` and `data:`, not a list or a single value")
    return root


def construct(node: yaml.Node) -> Any:
    """The plain value of a part of a YAML file. Raises ValueError where it does not fit its tag."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except Exception as error:  # for an empty !!int or a !!bool that is none, whatever PyYAML stumbles over
        text = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value does not fit its tag"
        raise ValueError(" ".join(text.split())) from None


Overrides = Settings | Mapping[str, Any]  # such as {"optim.lr": 0.1}


def value_at(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as YAML, a checkpoint and a tracker take them."""
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """A YAML text that `Settings.read_yaml` reads back to an equal Config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def saved_settings(tree: Mapping[str, Any], source: str) -> Settings:
    """The Settings that `to_dict` gave, or dotted keys; `source` names where they come from."""
    settings = Settings()
    for key, value in tree.items():
        if key in SECTIONS and isinstance(value, Mapping):
            settings.values.update({f"{key}.{leaf}": (one, source) for leaf, one in value.items()})
        else:
            settings.values[key] = (value, source)
    return settings


def documented_keys() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, description) of every key, for `--help`."""
    for section, cls in [("", Config), *SECTIONS.items()]:
        for name, info in cls.__pydantic_fields__.items():
            if info.description:
                key = f"{section}.{name}" if section else name
                default = info.get_default(call_default_factory=True, validated_data={})
                yield key, _type_name(info.annotation), _shown(default), info.description


def _type_name(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", None)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if choices and choices[0] is bool:
        return "true|false|" + "|".join(choices[1].__args__)
    text = str(getattr(annotation, "__name__", annotation)) if not choices else str(annotation)
    if text.startswith("tuple[str"):
        return "keys"
    if "tuple" in text:
        return "durations" if "[str" in text else "[r, g, b]" if "float" in text else "[number, strength]"
    for kind in ("dict", "float", "int", "str"):
        if kind in text:
            return {"dict": "mapping"}.get(kind, kind)
    return text


def _nearest(key: str) -> list[str]:
    """The key that was probably meant: one of that very name in another section, else the most similar one."""
    section, _, leaf = key.rpartition(".")
    if leaf == "epochs":
        return ["train.duration"]
    same = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    if same:
        return difflib.get_close_matches(key, same, n=1, cutoff=0) if section else same[:1]
    return difflib.get_close_matches(key, KEYS if section else [*KEYS, *SECTIONS], n=1, cutoff=0.6)


def _given_twice(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """(line, key) of the repeated keys of mappings inside a value."""
    if isinstance(node, yaml.MappingNode):
        seen = set[str]()
        for key_node, value_node in node.value:
            if str(key_node.value) in seen:
                yield key_node.start_mark.line + 1, str(key_node.value)
            seen.add(str(key_node.value))
            yield from _given_twice(value_node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _given_twice(item)


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {section: {} for section in SECTIONS}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return tree


def _messages(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted key, what is wrong) of each failing key, once each."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        key = ".".join(parts[:2] if parts[0] in SECTIONS else parts[:1])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        messages = found.setdefault(key, [])
        if message not in messages:
            messages.append(message)
    return [(key, "; ".join(messages)) for key, messages in found.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value else str(list(value) if isinstance(value, tuple) else value)


_ADAPTER = TypeAdapter(Config)
SECTIONS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)
}
KEYS: list[str] = [
    f"{section}.{f.name}" if section else f.name
    for section, cls in [("", Config), *SECTIONS.items()]
    for f in dataclasses.fields(cls)
    if f"{f.name}" not in SECTIONS or section
]
TEXTS = {key for key, kind, *_ in documented_keys() if kind == "str"}  # taken from the command line as they are typed
