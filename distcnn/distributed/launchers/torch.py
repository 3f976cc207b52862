"""PyTorch's variables: of torchrun, `accelerate launch --multi_gpu`, schedulers' wrappers, or exported by hand.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from distcnn.distributed.launchers.base import Variables, by_accelerate, with_address
from distcnn.distributed.world import Environment, World

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Torch:
    """Any launcher that sets RANK and WORLD_SIZE for each process."""

    rank_names = ("RANK",)
    local_rank_names = ("LOCAL_RANK",)

    def detect(self, environment: Environment) -> bool:
        """Whether RANK or WORLD_SIZE is set."""
        return "RANK" in environment or "WORLD_SIZE" in environment

    def world(self, environment: Environment) -> World:
        """Return the World. At world size 1 no address is needed."""
        variables = Variables(environment)
        alone = environment.get("WORLD_SIZE") == "1"
        variables.problems += _missing(environment, alone)
        rank, size = variables.number("RANK", 0), variables.number("WORLD_SIZE", 1, least=1)
        local_rank = variables.number("LOCAL_RANK", 0)
        local_size = variables.number("LOCAL_WORLD_SIZE", size, least=1)
        port = variables.port(least=0 if alone else 1)
        # torchrun numbers its agents; otherwise nodes of equal size are assumed, for messages only.
        node = variables.number("GROUP_RANK", 0 if alone else rank // local_size)
        agents = variables.number("GROUP_WORLD_SIZE", -(-size // local_size), least=1)
        elastic = "TORCHELASTIC_RUN_ID" in environment
        outer = _agents(variables, agents) if elastic else _disagreement(variables, rank, size)
        variables.check({
            f"RANK = {rank} in the environment: should be below WORLD_SIZE = {size}; ranks start at 0": rank >= size,
            f"LOCAL_RANK = {local_rank}, LOCAL_WORLD_SIZE = {local_size}, WORLD_SIZE = {size} in the environment: the "
            "local rank should be below the local world size, and that not above the world size; export the counts of "
            "this node": not local_rank < local_size <= size,
            "MASTER_ADDR is empty: set it to the host of rank 0": not alone and environment.get("MASTER_ADDR") == "",
            **outer,
        })  # fmt: skip
        launcher = "accelerate" if by_accelerate(environment) else "torchrun" if elastic else "environment"
        world = World(rank, size, local_rank, local_size, node, agents, launcher)
        return with_address(world, (environment.get("MASTER_ADDR", ""),), port)


def _missing(environment: Environment, alone: bool) -> list[str]:
    """Return a problem for each variable that is unset while others are set."""
    present = [name for name in VARIABLES if name in environment]
    needed = ("RANK",) if alone else VARIABLES
    return [
        f"{name} is not set, but {' and '.join(present)} {'is' if len(present) == 1 else 'are'}: export all of "
        f"{', '.join(VARIABLES)} for each process or, to run one process, unset {' '.join(present)}"
        for name in needed
        if name not in present
    ]


def _outer(variables: Variables) -> tuple[str, int, str, int] | None:
    """Return the launcher around this one, as (variable, number of tasks, variable, index of this task).

    mpirun first: inside an allocation its ranks inherit the step of their daemon.
    """
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")):
        if size in variables.environment:
            return size, variables.number(size, least=1), rank, variables.number(rank, 0)
    return None


def _disagreement(variables: Variables, rank: int, size: int) -> dict[str, bool]:
    """Return a problem if the variables differ from those of the launcher around them."""
    if (outer := _outer(variables)) is None:
        return {}
    name, tasks, rank_name, task = outer
    return {
        f"RANK = {rank}, WORLD_SIZE = {size}, but {rank_name} = {task}, {name} = {tasks}: two launchers "
        f"disagree. Unset RANK and WORLD_SIZE (exported before the job?): distcnn then follows {name}":
            tasks != 1 and (tasks, task) != (size, rank),
    }  # fmt: skip


def _agents(variables: Variables, agents: int) -> dict[str, bool]:
    """Return a problem if srun or mpirun started several independent agents: N trainings in one folder."""
    if (outer := _outer(variables)) is None:
        return {}
    name, tasks, *_ = outer
    elastic = variables.environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"  # such a job may have lost agents
    return {
        f"{name} = {tasks}, but torchrun's GROUP_WORLD_SIZE = {agents}: "
        f"{'srun' if name.startswith('SLURM') else 'mpirun'} started {tasks} agents that are not connected. "
        f"Give torchrun --nnodes {tasks} --rdzv-backend c10d --rdzv-endpoint HOST:PORT, as slurm/torchrun.sbatch "
        "does, or start one": tasks not in (1, agents) and not elastic,
    }  # fmt: skip
