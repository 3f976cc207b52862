"""The parser of every command: argparse's, but it collects all problems and raises them as one InputError."""

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from distcnn.commands import COMMANDS
from distcnn.config.keys import KEYS, SECTIONS
from distcnn.config.keys import documented_keys as config_keys
from distcnn.errors import InputError
from distcnn.text import listed

Options = argparse.Namespace
Handler = Callable[[Options], None]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not print usage and exit: `parse` raises InputError with all problems."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []
        self.run: Handler = lambda _: None
        self.takes_settings = self.lists_keys = False

    def add_settings(self, *, list_keys: bool = False) -> None:
        """Accept `--section.key value` as well, as `options.settings`: a list of words for Settings.read_arguments.

        To be called after the positional arguments are added. With `list_keys`, the help lists all keys.
        """
        self.takes_settings, self.lists_keys = True, list_keys
        where = "below" if list_keys else "listed by `distcnn train --help`"
        text = f"set a key of the config, overriding the file; the keys are {where}"
        self.add_argument("settings", nargs="*", default=[], metavar="--section.key value", help=text)

    def parse(self, words: Sequence[str]) -> Options:
        """Return the options. Raises InputError with every problem found.

        A command that looks for further problems sets a default for `problems`, a list: the parser's problems are put
        there, and not raised.
        """
        own, settings = self._split(words)
        options, further = self.parse_known_args(own)
        if self.takes_settings:
            options.settings = [*options.settings, *(word for word in further if not _is_option(word)), *settings]
            further = [word for word in further if _is_option(word)]
        self.problems += [
            f"{word}: unknown option{self._meant(word)}" if _is_option(word) else f"{word}: not expected here"
            for word in further
        ]
        if self.problems and "problems" not in options:
            raise InputError(self.problems)
        if "problems" in options:
            options.problems = self.problems
        return options

    def flags(self) -> dict[str, argparse.Action]:
        """Return the optional arguments by name, such as `--json`."""
        return dict(self._option_string_actions)

    def positionals(self) -> list[argparse.Action]:
        """Return the positional arguments."""
        return list(self._get_positional_actions())

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return (the words for argparse, the settings); misspelt options are noted as problems and dropped."""
        own, settings, rest = list[str](), list[str](), list(words)
        while rest:
            word = rest.pop(0)
            flag, equals, _ = word.partition("=")
            if not word.startswith("--") or word == "--" or flag in self.flags():
                own.append(word)
                continue
            near = self._nearest(flag)
            takes_value = self.takes_settings if near is None else self.flags()[near].nargs != 0
            value = [rest.pop(0)] if takes_value and not equals and rest and not rest[0].startswith("--") else []
            if near or not self.takes_settings:
                self.problems.append(f"{flag}: unknown option{self._meant(flag)}")
            else:
                settings += [word, *value]
        return own, settings

    def _nearest(self, flag: str) -> str | None:
        """Return the command's option that is most similar, if it is more similar than every key of the config."""
        keys: Iterable[str] = ()
        if self.takes_settings:
            keys = [f"--{key}" for key in (*KEYS, *SECTIONS)]
            if "." in flag or any(key.endswith(f".{flag[2:]}") for key in keys):
                return None
        near = difflib.get_close_matches(flag, [*keys, *self.flags()], n=1, cutoff=0.6)
        return near[0] if near and near[0] in self.flags() else None

    def _meant(self, flag: str) -> str:
        near = self._nearest(flag)
        return f"; did you mean {near}?" if near else f"; `{self.prog} --help` lists all"

    def error(self, message: str) -> NoReturn:
        """Raise InputError for an error that stops argparse."""
        raise InputError([*self.problems, f"{self.prog}: {message}; see {self.prog} --help"])

    def format_help(self) -> str:
        """Return argparse's help, followed by the config's keys if the command lists them."""
        return super().format_help() + (f"\n{documented_keys()}" if self.lists_keys else "")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert one value; if that fails, note the problem and continue with the text, to find further problems."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._note(action, arg_string, error.message)
            return arg_string

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), map(str, action.choices), n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            self._note(action, value, f"unknown; {meant}valid: {listed(list(action.choices))}")

    def _note(self, action: argparse.Action, value: Any, problem: str) -> None:
        flag = f"{action.option_strings[-1]} " if action.option_strings else ""
        self.problems.append(f"{flag}{value}: {problem}")


def command_parser(name: str) -> Parser:
    """Return a command's parser, with its handler as `run`. Raises InputError if the command cannot be imported."""
    command = COMMANDS.load(name)
    parser = Parser(f"distcnn {name}", description=inspect.getdoc(command))
    parser.run = command(parser)
    return parser


def command_parsers() -> Iterator[tuple[str, Parser]]:
    """Yield each command's name and parser; for a command that cannot be imported, one whose help says so."""
    for name in COMMANDS.names():
        try:
            yield name, command_parser(name)
        except Exception as error:  # a plug-in may raise anything
            yield name, Parser(f"distcnn {name}", description=f"cannot be used: {error}")


def documented_keys() -> str:
    """Return the help on every key of the config: its type, default and meaning."""
    lines = [
        f"  {key} <{kind}> = {default}\n      {description}\n" for key, kind, default, description in config_keys()
    ]
    return "keys, in the YAML file or as --section.key value:\n\n" + "".join(lines)


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: an integer of at least `least`."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"should be a whole number, {least} or more") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"should be {least} or more")
        return number

    return whole_number


positive_int, natural_int = at_least(1), at_least(0)


def positive_float(text: str) -> float:
    """Convert an argument to a positive, finite number."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("should be a number above 0")
    return number


def add_model(parser: Parser) -> None:
    """Add the argument `model`, for `load_model`."""
    parser.add_argument("model", metavar="MODEL", help="a run folder, a checkpoint, or a model.safetensors")


def add_views(parser: Parser) -> None:
    """Add `--views`, test-time augmentation."""
    parser.add_argument(
        "--views", choices=("one", "mirror", "crops"), help="test-time augmentation; default: the run's"
    )


def add_json(parser: Parser, text: str = "print one JSON object as the last line") -> None:
    """Add `--json`, for machine-readable output."""
    parser.add_argument("--json", action="store_true", help=text)


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1
