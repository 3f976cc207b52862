"""Who am I? One pure function from an environment to a World. `meeting.py` brings the ranks together."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from zlib import crc32

from distcnn.errors import LauncherError

Environment = Mapping[str, str]

TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")  # MPICH, Intel MPI


@dataclass(frozen=True)
class World:
    """One process's place among all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of this node
    local_size: int = 1  # ranks on this node
    node: int = 0
    nodes: int = 1
    launcher: str = "single"
    master_addrs: tuple[str, ...] = ()  # where rank 0 can be reached; empty at world size 1
    master_port: int = 0  # with `job`, the first of several to try
    job: str | None = None  # an id that all ranks know and no other job has: they agree on a port by it

    @property
    def is_main(self) -> bool:
        """Whether this rank reports and writes. Never a condition around a collective."""
        return self.rank == 0


def world_from(environment: Environment) -> World:
    """The World that a launcher's variables describe. Raises LauncherError with each variable and its cure."""
    return next(make(environment) for described, make in DETECTION if described(environment))


class _Reader:
    """Reads numbers from an environment and gathers every problem."""

    def __init__(self, environment: Environment):
        self.environment = environment
        self.problems: list[str] = []

    def number(self, name: str, default: int | None = None, least: int = 0) -> int:
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

    def check(self, good: bool, problem: str) -> None:
        """Add a problem; only where the numbers it speaks of could be read."""
        if not good and not self.problems:
            self.problems.append(problem)

    def check_port(self, port: int, *, needed: bool) -> None:
        """Whether MASTER_PORT can be one."""
        self.check(
            port < 2**16 and (port > 0 or not needed),
            f"MASTER_PORT = {port} in the environment: a port is above 0 and below 65536; 29500 is the usual one",
        )

    def stop_at_problems(self) -> None:
        if self.problems:
            raise LauncherError(self.problems)


def _torch_world(environment: Environment) -> World:
    """torchrun, `accelerate launch --multi_gpu`, schedulers' wrappers, or a person who exports them.

    https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    read = _Reader(environment)
    present = [name for name in TORCH_VARIABLES if name in environment]
    missing = [name for name in TORCH_VARIABLES if name not in present]
    alone = environment.get("WORLD_SIZE") == "1"  # nobody to meet: no address needed
    if alone:
        missing = [name for name in missing if name == "RANK"]
    for name in missing:
        read.problems.append(
            f"{name} is not set, but {' and '.join(present)} {'is' if len(present) == 1 else 'are'}: export all of "
            f"{', '.join(TORCH_VARIABLES)} for each process or, to run one process, unset {' '.join(present)}"
        )
    rank, size = read.number("RANK", 0), read.number("WORLD_SIZE", 1, least=1)
    local_rank = read.number("LOCAL_RANK", 0)
    local_size = read.number("LOCAL_WORLD_SIZE", size, least=1)
    port = read.number("MASTER_PORT", 0)
    read.check(rank < size, f"RANK = {rank} in the environment: should be below WORLD_SIZE = {size}; ranks start at 0")
    read.check(
        local_rank < local_size <= size,
        f"LOCAL_RANK = {local_rank}, LOCAL_WORLD_SIZE = {local_size}, WORLD_SIZE = {size} in the environment: the "
        "local rank should be below the local world size, and that not above the world size; export the counts of "
        "this node",
    )
    read.check_port(port, needed=not alone)
    read.check(alone or environment.get("MASTER_ADDR") != "", "MASTER_ADDR is empty: set it to the host of rank 0")
    # torchrun numbers its agents; otherwise equal nodes are assumed, for nothing but the text of messages.
    node = read.number("GROUP_RANK", 0 if alone else rank // local_size)
    agents = read.number("GROUP_WORLD_SIZE", -(-size // local_size), least=1)
    elastic = "TORCHELASTIC_RUN_ID" in environment
    # mpirun inside an allocation starts its daemons by srun: its ranks inherit their daemon's step, not theirs.
    for name, of_rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")):
        if name in environment:
            tasks, task = read.number(name, least=1), read.number(of_rank, 0)
            if elastic:
                _check_agents(read, name, tasks, agents)
            else:
                read.check(
                    tasks == 1 or (tasks, task) == (size, rank),
                    f"RANK = {rank}, WORLD_SIZE = {size}, but {of_rank} = {task}, {name} = {tasks}: two launchers "
                    f"disagree. Unset RANK and WORLD_SIZE (exported before the job?): distcnn then follows {name}",
                )
            break
    read.stop_at_problems()
    accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    return World(
        rank, size, local_rank, local_size, node, agents,
        launcher="accelerate" if accelerate else "torchrun" if elastic else "environment",
        master_addrs=() if alone else (environment["MASTER_ADDR"],), master_port=0 if alone else port,
    )  # fmt: skip


def _check_agents(read: _Reader, name: str, tasks: int, agents: int) -> None:
    """torchrun in every task of a step, or under every rank of mpirun, each agent alone: N trainings in one folder."""
    fixed = read.environment.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0"  # an elastic job may have lost some
    starter = "srun" if name.startswith("SLURM") else "mpirun"
    read.check(
        tasks == 1 or agents == tasks or not fixed,
        f"{name} = {tasks}, but torchrun's GROUP_WORLD_SIZE = {agents}: {starter} started {tasks} agents that do not "
        f"know of each other. Give torchrun --nnodes {tasks} --rdzv-backend c10d --rdzv-endpoint HOST:PORT, as "
        "slurm/torchrun.sbatch does, or start one",
    )


def _slurm_world(environment: Environment) -> World:
    """A task of a Slurm step: `srun python -m distcnn`. https://slurm.schedmd.com/srun.html, "output environment"."""
    read = _Reader(environment)
    size = read.number("SLURM_STEP_NUM_TASKS", least=1)
    rank = read.number("SLURM_PROCID")
    local_rank = read.number("SLURM_LOCALID")
    node = read.number("SLURM_NODEID", 0)
    counts = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    read.check(
        counts is not None,
        f"SLURM_STEP_TASKS_PER_NODE = {environment.get('SLURM_STEP_TASKS_PER_NODE')!r}: should read like 4(x2),3; "
        "is it exported from another job? Unset it",
    )
    counts = counts or [size]
    read.check(
        rank < size,
        f"SLURM_PROCID = {rank} in the environment: should be below SLURM_STEP_NUM_TASKS = {size}; start distcnn with "
        "srun, which sets both",
    )
    read.check(
        sum(counts) == size,
        f"SLURM_STEP_TASKS_PER_NODE = {environment.get('SLURM_STEP_TASKS_PER_NODE')}, SLURM_STEP_NUM_TASKS = {size}: "
        "they should add up; start distcnn with srun, which sets both",
    )
    read.check(
        node < len(counts),
        f"SLURM_NODEID = {node}, but SLURM_STEP_TASKS_PER_NODE = {environment.get('SLURM_STEP_TASKS_PER_NODE')} speaks "
        f"of {len(counts)} nodes; start distcnn with srun, which sets both",
    )
    local_size = counts[node] if node < len(counts) else size
    read.check(
        local_rank < local_size,
        f"SLURM_LOCALID = {local_rank} in the environment: should be below the {local_size} tasks that "
        f"SLURM_STEP_TASKS_PER_NODE gives this node; start distcnn with srun, which sets both",
    )
    job, step = read.number("SLURM_JOB_ID", least=1), read.number("SLURM_STEP_ID", 0)
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    first = _first_host(hosts)
    read.check(
        size == 1 or bool(first),
        f"SLURM_STEP_NODELIST = {hosts!r}: should name the step's nodes, like node[1-4]; start distcnn with "
        "srun, which sets it",
    )
    read.stop_at_problems()
    name = (
        f"slurm-{environment.get('SLURM_CLUSTER_NAME', '')}-{job}.{step}.{environment.get('SLURM_RESTART_COUNT', '0')}"
    )
    return _agreeing(
        World(rank, size, local_rank, local_size, node, len(counts), "srun"),
        (first,), name,
    )  # fmt: skip


def _mpi_world(environment: Environment) -> World:
    """A rank under Open MPI's mpirun, or under Hydra (MPICH, Intel MPI).

    https://docs.open-mpi.org/en/v4.1.x/faq/running.html names OMPI_COMM_WORLD_*; Hydra's are PMI_* and MPI_LOCAL*.
    """
    read = _Reader(environment)
    open_mpi = "OMPI_COMM_WORLD_SIZE" in environment or "OMPI_COMM_WORLD_RANK" in environment
    rank_name, size_name, local_rank_name, local_size_name = OPEN_MPI if open_mpi else HYDRA
    rank, size = read.number(rank_name), read.number(size_name, least=1)
    local_rank = read.number(local_rank_name, None if open_mpi else rank)
    local_size = read.number(local_size_name, None if open_mpi else size, least=1)
    read.check(
        rank < size,
        f"{rank_name} = {rank} in the environment: should be below {size_name} = {size}; start distcnn with mpirun, "
        "which sets both",
    )
    read.check(
        local_rank < local_size <= size,
        f"{local_rank_name} = {local_rank}, {local_size_name} = {local_size}, {size_name} = {size}: the local rank "
        "should be below the local size, and that not above the size; start distcnn with mpirun, which sets them",
    )
    job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid")
    given = environment.get("MASTER_ADDR", "")
    port = read.number("MASTER_PORT", 0)
    read.check_port(port, needed=False)
    hosts = [given] if given else []
    if local_size == size:
        hosts = ["127.0.0.1"]
    elif open_mpi:
        # mpirun's own node, all its addresses: rank 0 runs there unless the host file leaves that node out.
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
        hosts += [
            host for part in re.findall(r"tcp://([\d.,]+):", uri) for host in part.split(",") if host not in hosts
        ]
        elsewhere = rank == 0 and not given and uri != environment.get("OMPI_MCA_orte_local_daemon_uri", uri)
        read.check(
            not elsewhere,
            "MASTER_ADDR is not set, and rank 0 does not run on mpirun's own node: give mpirun "
            "-x MASTER_ADDR=HOST, the first host of its host file (launch/mpirun.sh does it)",
        )
    read.check(
        size == 1 or bool(hosts),
        f"MASTER_ADDR is not set, and {rank_name}'s launcher does not tell where rank 0 runs: give mpirun "
        "-genv MASTER_ADDR HOST -genv MASTER_PORT 29500 (with Open MPI: -x MASTER_ADDR=HOST)",
    )
    read.check(
        size == 1 or bool(job) or port > 0,
        f"MASTER_PORT is not set, and {rank_name}'s launcher gives its jobs no name to agree on a port by: give mpirun "
        "-genv MASTER_PORT 29500, or any other free port",
    )
    read.stop_at_problems()
    launcher = "accelerate" if "ACCELERATE_MIXED_PRECISION" in environment else "mpirun"
    world = World(rank, size, local_rank, local_size, 0 if local_size == size else rank // local_size,
                  -(-size // local_size), launcher)  # fmt: skip
    # Accelerate exports MASTER_PORT = 29500 to the ranks on mpirun's node alone: with a job's name it is not needed.
    return _agreeing(world, tuple(hosts), f"mpi-{job}") if job else _with(world, tuple(hosts), port, None)


def _single_world(environment: Environment) -> World:
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        raise LauncherError(
            "ACCELERATE_USE_CPU = True: `accelerate launch --cpu` was asked for several processes and started one "
            "(MASTER_PORT is set, RANK is not). Give it --mpirun_hostfile FILE, or use launch/accelerate.sh, or "
            "torchrun with --engine accelerate"
        )
    return World(launcher="accelerate" if "ACCELERATE_MIXED_PRECISION" in environment else "single")


def _in_step(environment: Environment) -> bool:
    return any(name in environment for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID"))


# The first that describes this process makes its World; the innermost launcher comes first.
DETECTION: tuple[tuple[Callable[[Environment], bool], Callable[[Environment], World]], ...] = (
    # torchrun inside srun or mpirun: the agents are the scheduler's tasks, the workers are torchrun's.
    (lambda e: "RANK" in e or "WORLD_SIZE" in e, _torch_world),
    # A task of a step. A batch script has SLURM_JOB_ID and SLURM_NTASKS too, but is no step: it is one process.
    # The same holds of mpirun's ranks (Open MPI's and Hydra's), which inherit the step of the daemon that srun started.
    (lambda e: _in_step(e) and not {"OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID"} & e.keys(), _slurm_world),
    (lambda e: any(name in e for name in (*OPEN_MPI[:2], *HYDRA[:2])), _mpi_world),
    (lambda _: True, _single_world),
)  # fmt: skip


def _agreeing(world: World, hosts: tuple[str, ...], job: str) -> World:
    # Below the ports that the kernel hands out by itself (from 32768 on). Different jobs mostly start apart.
    return _with(world, hosts, 20_000 + crc32(job.encode()) % 12_000, job)


def _with(world: World, hosts: tuple[str, ...], port: int, job: str | None) -> World:
    return world if world.size == 1 else replace(world, master_addrs=hosts, master_port=port, job=job)


def _first_host(nodelist: str) -> str:
    """`gpu[07-09,12],login` → `gpu07`: Slurm's host list syntax; several brackets take their first each."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _tasks_per_node(text: str) -> list[int] | None:
    """`2(x3),1` → [2, 2, 2, 1]; None if it is not of that form."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
