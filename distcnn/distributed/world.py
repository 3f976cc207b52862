"""This process's rank and the world size, from its launcher's variables. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from distcnn.rank import launcher_of

Environment = Mapping[str, str]


@dataclass(frozen=True)
class World:
    """One process among the ranks of a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of this node
    local_size: int = 1  # ranks on this node
    node: int = 0
    nodes: int = 1
    launcher: str = "single"
    master_addrs: tuple[str, ...] = ()  # where rank 0 can be reached; empty at world size 1
    master_port: int = 0  # with `job` the first of several to try
    job: str | None = None  # a unique id of the job, known to all ranks, from which the port is derived

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reports and writes. Never a condition around a collective."""
        return self.rank == 0


def world_from(environment: Environment) -> World:
    """Return the World that the innermost launcher's variables describe.

    Raises LauncherError with each invalid variable, its value, and what would be valid.
    """
    world: World = launcher_of(environment).world(environment)
    return world
