"""The launcher of this process and its rank, by environment variables alone. No torch."""

from collections.abc import Mapping
from typing import Any

from distcnn.errors import InputError, LauncherError
from distcnn.registry import Registry

# Innermost first: the first that detects its variables started this process; other launchers' are inherited.
LAUNCHERS = Registry(
    "launchers",
    {
        # torchrun inside srun or mpirun: its agents are their tasks, the ranks its workers.
        "torch": "distcnn.distributed.launchers.torch:Torch",
        # Launchers of installed packages go here: they may run inside an allocation, and torchrun inside them.
        # mpirun inside an allocation starts its daemons by srun, whose step its ranks inherit.
        "mpi": "distcnn.distributed.launchers.mpi:MPI",
        "slurm": "distcnn.distributed.launchers.slurm:Slurm",
        "single": "distcnn.distributed.launchers.single:Single",  # detects any environment
    },
)


def launcher_of(environment: Mapping[str, str]) -> Any:
    """Return the innermost launcher (a `distributed.launchers.base.Launcher`) that detects its variables.

    Raises LauncherError if the launcher of an installed package cannot be imported, as it may be the one.
    """
    innermost, *outer = LAUNCHERS.builtin
    installed = [name for name in LAUNCHERS.names() if name not in LAUNCHERS.builtin]
    return next(one for one in map(_load, [innermost, *installed, *outer]) if one.detect(environment))


def rank_from_env(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, local rank) without a World; 0 if no variable is set.

    Only to decide which process prints a message: the variables may be wrong.
    """
    try:
        launcher = launcher_of(environment)
    except LauncherError:
        return 0, 0  # each rank prints it

    def first(names: tuple[str, ...]) -> int:
        texts = [environment[name] for name in names if name in environment]
        return int(texts[0]) if texts and texts[0].isdecimal() else 0

    return first(launcher.rank_names), first(launcher.local_rank_names)


def _load(name: str) -> Any:
    try:
        return LAUNCHERS.load(name)()
    except InputError as error:
        raise LauncherError(f"launcher {name}: {error}; repair or uninstall the package that provides it") from error
