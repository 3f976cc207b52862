"""No launcher: one process."""

from distcnn.distributed.launchers.base import by_accelerate
from distcnn.distributed.world import Environment, World
from distcnn.errors import LauncherError


class Single:
    """A single process, perhaps of `accelerate launch`. Detects any environment."""

    rank_names: tuple[str, ...] = ()
    local_rank_names: tuple[str, ...] = ()

    def detect(self, environment: Environment) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def world(self, environment: Environment) -> World:
        """Return the World of one rank."""
        if by_accelerate(environment) and "MASTER_PORT" in environment:
            raise LauncherError(
                "ACCELERATE_USE_CPU = True: `accelerate launch --cpu` was asked for several processes but started one "
                "(MASTER_PORT is set, RANK is not). Give it --mpirun_hostfile FILE, or use launch/accelerate.sh, or "
                "torchrun with --engine accelerate"
            )
        return World(launcher="accelerate" if by_accelerate(environment) else "single")
