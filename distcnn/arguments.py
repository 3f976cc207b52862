"""The arguments of a callable, from its signature: names, types, ranges and defaults. No torch."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import NotRequired, TypedDict

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One parameter."""

    name: str
    hint: Any  # its annotation, or Any
    default: Any  # or REQUIRED

    @property
    def description(self) -> str:
        """The description of the pydantic Field in its annotation, or ""."""
        found = [one.description for one in get_args(self.hint)[1:] if isinstance(one, FieldInfo)]
        return (found[0] or "") if found else ""

    @property
    def type_name(self) -> str:
        """Its type in words, such as float, zeros|reflect or tuple[int, int]."""
        return _type_name(self.hint)


def arguments(part: Callable[..., Any], given: frozenset[str] = frozenset()) -> list[Argument]:
    """Return the parameters of a function or class in order, except the `given` ones and *args, **kwargs."""
    try:
        hints = get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)
    except Exception:  # a user's annotations may name what does not exist at run time
        hints = {}
    parameters = inspect.signature(part).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    return [Argument(p.name, hints.get(p.name, Any), p.default) for p in named]


def validated(part: Callable[..., Any], args: Mapping[str, Any], given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Convert the arguments to their annotated types, such as a list to a tuple.

    Raises pydantic's ValidationError.
    """
    return dict(_adapter(part, given).validate_python(dict(args)))


def wrong(
    part: Callable[..., Any], args: Mapping[str, Any], given: frozenset[str] = frozenset(), called: str = "it"
) -> Iterator[tuple[str, str]]:
    """Yield (argument, problem and what would be valid) of each invalid argument, once each.

    `called` is the name of the part in the texts.
    """
    try:
        validated(part, args, given)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for one in error.errors():
            name = str(one["loc"][0])
            text = one["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if one["type"] == "extra_forbidden":
                text = _unknown(name, [known.name for known in arguments(part, given)], called)
            elif one["type"] == "missing":
                text = "has to be given"
            if text not in found.setdefault(name, []):
                found[name].append(text)
        yield from ((name, "; ".join(texts)) for name, texts in found.items())


@lru_cache(maxsize=256)
def _adapter(part: Callable[..., Any], given: frozenset[str]) -> TypeAdapter[dict[str, Any]]:
    fields = {}
    for one in arguments(part, given):
        hint = one.hint if _is_checkable(one.hint) else Any
        fields[one.name] = hint if one.default is REQUIRED else NotRequired[hint]
    make: Any = TypedDict  # by a name of its own: to a type checker a TypedDict is written out
    schema = make("schema", fields)
    takes_any = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(part).parameters.values())
    schema.__pydantic_config__ = ConfigDict(extra="allow" if takes_any else "forbid", allow_inf_nan=False)
    return TypeAdapter(schema)


def _is_checkable(hint: Any) -> bool:
    try:
        TypeAdapter(hint)
    except Exception:  # a type that pydantic cannot check
        return False
    return True


def _unknown(name: str, known: list[str], called: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown argument; {meant}{called} takes {', '.join(known) or 'none'}"


def _type_name(hint: Any) -> str:
    """Format a type hint, without pydantic's constraints."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, UnionType):
        return "|".join(map(_type_name, inner))
    if origin is not None and inner:
        return f"{_type_name(origin)}[{', '.join(map(_type_name, inner))}]"
    names = {Any: "any", NoneType: "none", ...: "..."}
    return names.get(hint) or str(getattr(hint, "__name__", hint))
