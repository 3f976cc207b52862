"""Who am I? One pure function from an environment to a World, and the process group that stands behind it."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from distcnn.errors import BadInput

TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """One process's place among all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of this node; picks the GPU
    local_size: int = 1  # ranks on this node
    launcher: str = "single"

    @property
    def is_main(self) -> bool:
        """Whether this rank reports and writes. Never a condition around a collective."""
        return self.rank == 0


def world_from(environment: Mapping[str, str]) -> World:
    """The World that torchrun's variables describe, or the single-process one when none is set.

    torchrun, `accelerate launch` and most schedulers' wrappers set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT (https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables). A part of them is
    an error, and so is a Slurm step or an MPI job of several tasks without them: N processes that each believe
    they are alone would train N models into one folder.
    """
    present = [name for name in TORCH_VARIABLES if name in environment]
    if "RANK" in present or "WORLD_SIZE" in present:
        return _torch_world(environment, present)
    for tasks, launcher in (
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("PMI_SIZE", "MPI"),
    ):
        if environment.get(tasks, "1") != "1":
            raise BadInput(
                f"{tasks} = {environment[tasks]}, but RANK and WORLD_SIZE are not set: {launcher} started "
                f"{environment[tasks]} processes that do not know of each other. Start torchrun once a node, or export "
                f"{', '.join(TORCH_VARIABLES)} for each process (README, Launchers)"
            )
    return World()


def _torch_world(environment: Mapping[str, str], present: list[str]) -> World:
    missing = [name for name in TORCH_VARIABLES if name not in present]
    if environment.get("WORLD_SIZE") == "1":  # nobody to meet: no address needed
        missing = [name for name in missing if not name.startswith("MASTER_") and name != "LOCAL_RANK"]
    problems = [f"{name} is not set, but {' and '.join(present)} {'is' if len(present) == 1 else 'are'}: "
                f"a launcher sets all of {', '.join(TORCH_VARIABLES)} or none" for name in missing]  # fmt: skip
    numbers: dict[str, int] = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environment.get(name)
        if text is not None and not text.isdecimal():
            problems.append(f"{name} = {text!r} in the environment: should be a whole number of 0 or more")
        elif text is not None:
            numbers[name] = int(text)
    rank, size = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
    local_rank = numbers.get("LOCAL_RANK", 0)
    local_size = numbers.get("LOCAL_WORLD_SIZE", size)
    if not problems and not rank < size:
        problems.append(f"RANK = {rank} in the environment: should be below WORLD_SIZE = {size}")
    if not problems and not local_rank < local_size <= size:
        problems.append(
            f"LOCAL_RANK = {local_rank}, LOCAL_WORLD_SIZE = {local_size}, WORLD_SIZE = {size} in the environment: "
            "the local rank should be below the local world size, and that not above the world size"
        )
    if problems:
        raise BadInput(problems)
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "environment"
    return World(rank, size, local_rank, local_size, launcher)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_group(world: World, *, cuda: bool, timeout_s: float) -> Iterator[None]:
    """The ranks' meeting, over NCCL or gloo; nothing at all at world size 1.

    On CUDA the caller has set the current device already, so that no rank opens a context on GPU 0. After an
    exception the group is not taken down in order: other ranks may stand in a collective, and nobody may wait
    for them. Raises BadInput when the ranks cannot meet.
    """
    if world.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_s),
            device_id=torch.device("cuda", torch.cuda.current_device()) if cuda else None,
        )
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        raise BadInput(
            f"rank {world.rank} of {world.size} on {socket.gethostname()} could not meet the others at MASTER_ADDR = "
            f"{os.environ.get('MASTER_ADDR')}, MASTER_PORT = {os.environ.get('MASTER_PORT')} within {timeout_s:g} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    yield
    dist.destroy_process_group()
