"""The resources that a job requests from Slurm."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from distcnn.arguments import validated, wrong
from distcnn.errors import InputError

_TIME = re.compile(r"(\d+-)?\d+(:\d\d?){0,2}|UNLIMITED|INFINITE", re.IGNORECASE | re.ASCII)
_ELEMENTS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?", re.ASCII)


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("should be a time as sbatch takes it: MINUTES, HH:MM:SS or D-HH:MM:SS")
    return text


def elements(array: str) -> list[range]:
    """Return the elements of sbatch's --array, such as `0-3` or `0,2,4-10:2%3`. Raises ValueError."""
    listed, _, limit = array.partition("%")
    found = []
    for part in listed.split(","):
        match = _ELEMENTS.fullmatch(part)
        if match is None or ("%" in array and not limit.isdecimal()):
            raise ValueError("should be elements as sbatch takes them: 0-9, or 0,2,4-10:2, or 0-9%4 for 4 at a time")
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1, max(1, int(match[3] or 1))))
        if not found[-1]:
            raise ValueError(f"{part} names no element")
    return found


def _array(text: str) -> str:
    elements(text)
    return text


def _options(options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    for name, value in options.items():
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z-]*", name):
            raise ValueError(f"{name!r} is not the name of an sbatch option, such as partition (without the dashes)")
        if not str(value).isprintable():
            raise ValueError(f"{name}: {value!r} contains unprintable characters")
    return options


Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Resources:
    """A job's resources, and how its ranks are started: one field per resource parameter of `distcnn.slurm.submit`."""

    nodes: Count = 1  # elastic: the maximum
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    ranks_per_node: Count | None = None  # None: one per GPU; without GPUs, one
    cpus_per_rank: Count | None = None  # None: the cluster's default
    time: Annotated[str, AfterValidator(_time)] | None = None  # None: the partition's
    array: Annotated[str, AfterValidator(_array)] | None = None
    launcher: Literal["srun", "torchrun", "elastic"] = "srun"
    signal: Literal["USR1", "USR2"] = "USR1"
    grace: Count = 120  # seconds from the signal to the time limit
    options: Annotated[dict[str, str | int | bool], AfterValidator(_options)] = field(default_factory=dict)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> "Resources":
        """Return Resources from values by name. Raises InputError with every wrong parameter."""
        problems = [f"{name} = {given.get(name)!r}: {text}" for name, text in wrong(cls, given)]
        if problems:
            raise InputError(problems)
        resources = cls(**validated(cls, given))
        if problems := [*resources._conflicts()]:
            raise InputError(problems)
        return resources

    def _conflicts(self) -> Iterator[str]:
        if 0 < self.gpus_per_node < self.ranks:
            yield f"ranks_per_node = {self.ranks}, gpus_per_node = {self.gpus_per_node}: each rank needs a GPU"

    @property
    def ranks(self) -> int:
        """The number of ranks per node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world_sizes(self) -> list[int]:
        """The world sizes that the run may have: an elastic one continues with any number of nodes."""
        least = 1 if self.launcher == "elastic" else self.nodes
        return [nodes * self.ranks for nodes in range(least, self.nodes + 1)]
