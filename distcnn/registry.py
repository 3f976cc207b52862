"""Parts by name: built in, from installed packages, or a user's `package.module:callable`. No torch.

A part is a class or a function. distcnn provides some parameters, which are fixed for each kind; the user sets the
others, as `args` in the config.
"""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from distcnn.arguments import Argument, arguments, validated, wrong
from distcnn.errors import InputError

Problem = tuple[tuple[str, ...], str]  # the dotted keys involved; what is wrong, and what would be valid
Part = TypeVar("Part", bound=Callable[..., Any])


def checked_by(check: Callable[[Any, Mapping[str, Any]], Iterable[Problem]]) -> Callable[[Part], Part]:
    """Attach `check(config, args)` to a part: its rules on two arguments, or on the rest of the config.

    `args` holds all arguments, with defaults for those that are not set.
    """

    def decorate(part: Part) -> Part:
        part.check = check  # type: ignore[attr-defined]
        return part

    return decorate


class Registry:
    """The parts of one kind. Installed packages add theirs as entry points of the group `distcnn.<kind>`.

    A part is imported when it is used: a broken package is named there, and affects nothing else.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str],
        *,
        given: Iterable[str] = (),
        called_with: int = 0,
        more: str = "",
        hint: str = "your own package.module:callable",
    ):
        """`kind` is in the plural, such as `optimizers`; `builtin` maps names to "package.module:callable".

        `given` are the parameters that distcnn provides. With `called_with`, functions are called later with that many
        values, so as many of their first parameters, whatever their names, are provided too. `more` is the
        "package.module:mapping" of further parts by name. `hint` is what messages name as valid besides the names.
        """
        self.kind, self.builtin, self.given, self.hint = kind, dict(builtin), frozenset(given), hint
        self.called_with, self._more = called_with, more

    @cached_property
    def targets(self) -> dict[str, str]:
        """Name → "package.module:callable". Built-in names cannot be overridden by a package."""
        installed = {point.name: point.value for point in entry_points(group=f"distcnn.{self.kind}")}
        return self.builtin | {name: target for name, target in installed.items() if name not in self.builtin}

    def names(self) -> list[str]:
        """Return all names, built-in ones first."""
        return [*dict.fromkeys([*self.targets, *self._further()])]

    def load(self, name: str) -> Any:
        """Import the part of that name. Raises InputError if it does not exist or cannot be imported."""
        target = self.targets.get(name, name)
        if ":" not in target:
            if name in (further := self._further()):
                return further[name]
            near = difflib.get_close_matches(name, self.names(), n=3)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(f"unknown; {meant}valid: {', '.join(self.targets)}, or {self.hint}")
        try:
            part = imported(target)
        except InputError as error:
            raise InputError(f"{target}: {error}" if name in self.targets else str(error)) from error
        if not callable(part):
            raise InputError(f"{target} is not callable")
        try:
            inspect.signature(part)
        except ValueError as error:  # some callables written in C
            raise InputError(f"{target} has no signature: call it in a function of your own") from error
        return part

    def arguments(self, name: str) -> list[Argument]:
        """Return the arguments of a part that the user can set. Raises InputError, as `load` does."""
        part = self.load(name)
        return arguments(part, self._given(part))

    def problems(
        self, name: str, args: Mapping[str, Any], config: Any, name_key: str, args_key: str = ""
    ) -> Iterator[Problem]:
        """Yield all problems of a name and its arguments, including those that the part's own check finds.

        Their keys are `name_key` and `args_key.<argument>`. Without `args_key`, as for an item of a list, the text
        names the part and the argument.
        """
        try:
            part = self.load(name)
        except InputError as error:
            yield (name_key,), str(error) if args_key else f"{name}: {error}"
            return
        given = self._given(part)
        found = [*wrong(part, args, given, name if args_key else "it")]
        for argument, text in found:
            yield ((f"{args_key}.{argument}",), text) if args_key else ((name_key,), f"{name}: {argument}: {text}")
        if not found and (check := getattr(part, "check", None)):
            defaults = {one.name: one.default for one in arguments(part, given)}
            yield from check(config, defaults | validated(part, args, given))

    def build(self, name: str, args: Mapping[str, Any], /, *positional: Any, **provided: Any) -> Any:
        """Call the part with the user's arguments and with those of `provided` that it accepts.

        Raises InputError, as `load` does, and what the part raises.
        """
        part = self.load(name)
        taken = inspect.signature(part).parameters
        known = {key: value for key, value in provided.items() if key in taken}
        return part(*positional, **known, **validated(part, args, self._given(part)))

    def bind(self, name: str, args: Mapping[str, Any]) -> Callable[..., Any]:
        """Return a callable: a function with the user's arguments bound, or an instance of a class made with them.

        Raises InputError, as `load` does, and what the class raises.
        """
        part = self.load(name)
        known = validated(part, args, self._given(part))
        bound: Any = part(**known) if inspect.isclass(part) else partial(part, **known)
        return cast("Callable[..., Any]", bound)

    def _given(self, part: Callable[..., Any]) -> frozenset[str]:
        if inspect.isclass(part) or not self.called_with:
            return self.given
        return self.given | {*[*inspect.signature(part).parameters][: self.called_with]}

    def _further(self) -> Mapping[str, Callable[..., Any]]:
        found: Mapping[str, Callable[..., Any]] = imported(self._more) if self._more else {}
        return found


def imported(target: str) -> Any:
    """Import the object at "package.module:name". Raises InputError if that fails."""
    module_name, _, attribute = target.partition(":")
    # Last, so that no file there replaces an installed module; not if Python was told to leave it out.
    if (here := str(Path.cwd())) not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"{error}; looked for in the current folder and the installed packages") from error
    except Exception as error:  # raised by the module itself
        raise InputError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
