"""Which rank this process is, by its launcher's variables alone: only for who prints a message."""

from collections.abc import Mapping

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


def rank_from_env(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, local rank) as well as they can be known before, or without, a World; 0 where no variable tells."""

    def first(names: tuple[str, ...]) -> int:
        texts = [environment[name] for name in names if name in environment]
        return int(texts[0]) if texts and texts[0].isdecimal() else 0

    return first(RANK_VARIABLES), first(LOCAL_RANK_VARIABLES)
