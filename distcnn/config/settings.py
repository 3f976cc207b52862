"""Read settings from YAML, the command line and mappings into one checked Config; report all problems at once.

pydantic reports every error of a tree with its path; jsonargparse, the usual choice, stops at the first.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from distcnn.config.keys import KEYS, MAPPINGS, PARTS, SECTIONS, TEXTS, shown
from distcnn.config.rules import conflicts
from distcnn.config.schema import Config
from distcnn.config.tree import flatten, unflatten
from distcnn.config.yaml_text import compose, construct, given_twice
from distcnn.errors import DeviceError, InputError
from distcnn.registry import Problem

COMMAND_LINE = "command line"


class Settings:
    """Unchecked values, each with its origin: `{"optim.lr": (0.1, "x.yaml:7")}`. Later values replace earlier ones."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, str]] = {}
        self.problems: list[str] = []

    def read_yaml(self, path: Path) -> "Settings":
        """Add a file's values. A repeated key is a problem. Raises InputError if the file is not readable as YAML."""
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
            if key in (*SECTIONS, *MAPPINGS) and isinstance(value_node, yaml.MappingNode):
                self._add(value_node, key + ".", path)
                continue
            try:
                self._put(key, construct(value_node), place)
            except ValueError as error:
                self.problems.append(f"{key} ({place}): {error}")
            for line, twice in given_twice(value_node):
                self.problems.append(f"{key} ({path}:{line}): {twice} is given twice")

    def read_arguments(self, arguments: Sequence[str]) -> "Settings":
        """Add `--section.key value` or `--section.key=value`; values are YAML, except of keys that hold text."""
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
                self._put(key, text, COMMAND_LINE)
                continue
            try:
                self._put(key, yaml.safe_load(text), COMMAND_LINE)
            except (yaml.YAMLError, ValueError):
                self._put(key, text, COMMAND_LINE)
        return self

    def update(self, overrides: "Overrides") -> "Settings":
        """Add values by dotted key, or other Settings."""
        if isinstance(overrides, Settings):
            self.values.update(overrides.values)
            self.problems += overrides.problems
        else:
            for key, value in overrides.items():
                self._put(key, value, "overrides")
        return self

    def default(self, key: str, value: Any) -> "Settings":
        """Add a value unless the key has one already."""
        self.values.setdefault(key, (value, "default"))
        return self

    def _put(self, key: str, value: Any, place: str) -> None:
        """Set a value. A mapping such as `optim.args` replaces all earlier arguments, and is stored by argument.

        A new part, such as another `optim.name` on the command line, drops the arguments of the previous one.
        """
        if key in PARTS and value != (self.values[key][0] if key in self.values else value_at(Config(), key)):
            own = [known for known in self.values if known.startswith(PARTS[key])]
            for known in [known for known in own if _source(self.values[known][1]) != _source(place)]:
                del self.values[known]
        self.values.pop(key.rpartition(".")[0], None)  # what was given in place of a mapping
        if key in MAPPINGS:
            for known in [known for known in self.values if known.startswith(f"{key}.")]:
                del self.values[known]
            if isinstance(value, Mapping):
                self.values.update({f"{key}.{leaf}": (one, place) for leaf, one in value.items()})
                return
        self.values[key] = (value, place)

    def check(
        self,
        world_size: int,
        environment: Callable[[Config], Iterable[Problem]] = lambda _: (),
        device: Callable[[Config], Iterable[Problem]] = lambda _: (),
    ) -> Config:
        """Return the Config of these values. Raises InputError with every problem.

        `environment` yields problems with this machine, such as a missing folder. `device` yields problems with the
        device of this rank, which other ranks may not have: these raise DeviceError.
        """
        problems, doubtful = list(self.problems), set[str]()
        values = {key: value for key, (value, _) in self.values.items()}
        for key in [key for key in values if key not in KEYS and key.rpartition(".")[0] not in MAPPINGS]:
            del values[key]
            near = _nearest(key)
            doubtful.update(known for known in KEYS if known in near or known.split(".")[0] in near)
            hint = f"did you mean {near[0]}?" if near else "`distcnn train --help` lists all keys"
            if key in SECTIONS:
                hint = "is a section: give its keys, indented below it"
            problems.append(f"{key} ({self.values[key][1]}): {'' if key in SECTIONS else 'unknown key; '}{hint}")
        try:
            config = _ADAPTER.validate_python(unflatten(values))
        except ValidationError as error:
            for key, message in _messages(error):
                problems.append(f"{key} = {shown(values.pop(key))} ({self.values[key][1]}): {message}")
                doubtful.add(key)
            # Check the rest with the failing keys at their defaults, to report all problems at once.
            config = _ADAPTER.validate_python(unflatten(values))

        def formatted(found: Iterable[Problem]) -> list[str]:
            return [f"{self._given(config, keys)}: {text}" for keys, text in found if doubtful.isdisjoint(keys)]

        problems += formatted(conflicts(config, world_size)) + formatted(environment(config))
        if own := formatted(device(config)):
            raise DeviceError(problems + own)
        if problems:
            raise InputError(problems)
        return config

    def _given(self, config: Config, keys: Iterable[str]) -> str:
        def given(key: str) -> str:
            if key not in KEYS and key not in self.values:  # an argument left at the part's own default
                return f"{key} (default)"
            return f"{key} = {shown(value_at(config, key))} ({self._place(key)})"

        return ", ".join(map(given, keys))

    def _place(self, key: str) -> str:
        return self.values[key][1] if key in self.values else "default"


Overrides = Settings | Mapping[str, Any]  # such as {"optim.lr": 0.1}


def load_settings(path: Path, arguments: Sequence[str] = (), problems: Iterable[str] = ()) -> Settings:
    """Read a YAML file, then `--section.key value` arguments. The default name of the run is that of the file.

    `problems` are reported with those that `check` finds. Raises InputError if the file is not readable as YAML.
    """
    settings = Settings()
    settings.problems += problems
    try:
        return settings.read_yaml(path).read_arguments(arguments).default("name", path.stem)
    except InputError as error:
        raise InputError([*settings.problems, *error.problems]) from None


def value_at(config: Config, key: str) -> Any:
    """Return the value at a dotted key."""
    value: Any = config
    for part in key.split(".", 2):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


def to_dict(config: Config) -> dict[str, Any]:
    """Convert to nested plain values, for YAML, checkpoints and trackers."""
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """Convert to YAML, which `Settings.read_yaml` reads back to an equal Config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def saved_settings(tree: Mapping[str, Any], source: str) -> Settings:
    """Make Settings from the output of `to_dict`, or from dotted keys; `source` is their origin in messages."""
    settings = Settings()
    for key, value in tree.items():  # in order: `optim.args` replaces all earlier arguments
        for leaf, one in (flatten({key: value}) if key in SECTIONS else {key: value}).items():
            settings._put(leaf, one, source)
    return settings


def _source(place: str) -> str:
    """Strip the line number from an origin."""
    return place.rpartition(":")[0] or place


def _nearest(key: str) -> list[str]:
    """Return the key probably meant: the same name in another section, else the most similar key."""
    section, _, leaf = key.rpartition(".")
    if leaf == "epochs":
        return ["train.duration"]
    same = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    if same:
        return difflib.get_close_matches(key, same, n=1, cutoff=0) if section else same[:1]
    near = difflib.get_close_matches(key, KEYS if section else [*KEYS, *SECTIONS], n=1, cutoff=0.6)
    if f"{section}.args" in MAPPINGS and not (near and near[0].startswith(section)):
        return [f"{section}.args.{leaf}"]
    return near


def _messages(error: ValidationError) -> list[tuple[str, str]]:
    """Return (dotted key, problem) of each failing key, once each."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        key = ".".join(parts[:2] if parts[0] in SECTIONS else parts[:1])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        messages = found.setdefault(key, [])
        if message not in messages:
            messages.append(message)
    return [(key, "; ".join(messages)) for key, messages in found.items()]


_ADAPTER = TypeAdapter(Config)
