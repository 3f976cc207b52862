"""The protocol of launchers, and helpers that read their variables. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol
from zlib import crc32

from distcnn.distributed.world import Environment, World
from distcnn.errors import LauncherError


class Launcher(Protocol):
    """A launcher, constructed without arguments. Packages add theirs by entry points, group `distcnn.launchers`."""

    rank_names: tuple[str, ...]  # variables that may hold the rank: the first one set counts
    local_rank_names: tuple[str, ...]  # the same for the local rank

    def detect(self, environment: Environment) -> bool:
        """Whether this launcher started the process. Launchers that it can run inside are asked later."""

    def world(self, environment: Environment) -> World:
        """Return the World. Raises LauncherError with each invalid variable, its value, and what would be valid."""


class Variables:
    """Reads numbers from an environment and collects every problem for `check`."""

    def __init__(self, environment: Environment):
        self.environment = environment
        self.problems: list[str] = []

    def number(self, name: str, default: int | None = None, least: int = 0) -> int:
        """Return a variable's integer value of at least `least`; without a `default` it must be set."""
        text = self.environment.get(name)
        if text is None and default is not None:
            return default
        if text is None or not text.isdecimal() or int(text) < least:
            found = "is not set" if text is None else f"= {text!r} in the environment"
            self.problems.append(
                f"{name} {found}: should be a whole number of {least} or more, as the launcher sets it"
            )
            return max(least, default or 0)
        return int(text)

    def port(self, least: int = 0) -> int:
        """Return MASTER_PORT, 0 if it is not set."""
        count = len(self.problems)
        port = self.number("MASTER_PORT", 0)
        if "MASTER_PORT" in self.environment and len(self.problems) == count and not least <= port < 2**16:
            self.problems.append(
                f"MASTER_PORT = {port} in the environment: a port is above 0 and below 65536; 29500 is the usual one"
            )
        return port

    def check(self, conditions: Mapping[str, bool]) -> None:
        """Raise LauncherError with all problems found while reading, else with the first condition that is true.

        `conditions` maps each problem to whether it exists. They compare numbers, so all must be readable first.
        """
        problems = self.problems or [problem for problem, found in conditions.items() if found][:1]
        if problems:
            raise LauncherError(problems)


def by_accelerate(environment: Environment) -> bool:
    """Whether `accelerate launch` started the launcher."""
    return "ACCELERATE_MIXED_PRECISION" in environment


def with_address(world: World, hosts: tuple[str, ...], port: int = 0, job: str | None = None) -> World:
    """Add rank 0's address: at `port`, or at one derived from the name of the `job`.

    A hash of the name gives the first port to try, below the kernel's ephemeral range (from 32768 on), so that
    different jobs mostly start at different ports. A single rank needs no address.
    """
    if world.size == 1:
        return world
    first = port if job is None else 20_000 + crc32(job.encode()) % 12_000
    return replace(world, master_addrs=hosts, master_port=first, job=job)
