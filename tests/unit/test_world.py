"""World from an environment: of every launcher as it is, or one clear message."""

import re
import sys
from dataclasses import replace

import pytest

from distcnn.distributed.launchers.torch import VARIABLES
from distcnn.distributed.world import World, world_from
from distcnn.errors import LauncherError
from distcnn.rank import LAUNCHERS, rank_from_env
from distcnn.registry import Registry
from tests.broken_environments import (
    ACCELERATE,
    BARE,
    BATCH,
    BROKEN,
    ELSEWHERE,
    HYDRA,
    OPEN_MPI,
    OPEN_MPI_2,
    SRUN,
    TORCHRUN,
    less,
)
from tests.packages import install

HERE, AT = ("127.0.0.1",), {"master_addrs": ("127.0.0.1",), "master_port": 29500}
NODE_2 = {"RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}  # torchrun's second node of two
FIRST = {"MASTER_ADDR": "node1"}
STEP_NAME, MPI_NAME = "slurm-try-1.0.0", "mpi-716111873"
ON_NODE_1 = {"master_addrs": ("node1",), "job": STEP_NAME}
DAEMONS = ("10.0.0.2", "10.1.0.2")
UNEVEN = SRUN | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "3,1"}
MPI_NODE_2 = OPEN_MPI_2 | ELSEWHERE | {"OMPI_COMM_WORLD_RANK": "1"}

# where → (environment, World); where the ranks agree on a port by the job's name, the table tells the name only
GOOD = {
    "no launcher": ({"PATH": "/bin"}, World()),
    "an unrelated MASTER_ADDR": ({"MASTER_ADDR": "somewhere", "MASTER_PORT": "29500"}, World()),
    "bare variables": (BARE, World(1, 2, 1, 2, launcher="environment", **AT)),
    "bare variables, node 2 of 2": (BARE | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, World(3, 4, 1, 2, 1, 2, "environment", **AT)),
    "bare, one process needs no address": ({"RANK": "0", "WORLD_SIZE": "1"}, World(launcher="environment")),
    "bare, one process and an empty address": ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": ""}, World(launcher="environment")),
    "bare variables that agree with srun": (BARE | SRUN | {"SLURM_PROCID": "1"}, World(1, 2, 1, 2, launcher="environment", **AT)),
    "bare variables that agree with mpirun in its daemon's step": (BARE | OPEN_MPI | SRUN, World(1, 2, 1, 2, launcher="environment", **AT)),
    "Hydra in its proxy's step": (SRUN | HYDRA | {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "SLURM_PROCID": "1", "SLURM_NODEID": "1"}, World(3, 4, 1, 2, 1, 2, "mpirun", ("10.0.0.2",), 29500)),
    "bare variables that agree with mpirun": (BARE | OPEN_MPI, World(1, 2, 1, 2, launcher="environment", **AT)),
    "torchrun": (TORCHRUN, World(1, 2, 1, 2, launcher="torchrun", **AT)),
    "torchrun, 1 process": (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, World(launcher="torchrun")),
    "torchrun, node 2 of 2": (TORCHRUN | NODE_2, World(3, 4, 1, 2, 1, 2, "torchrun", **AT)),
    "torchrun, one worker on node 2 of 2": (TORCHRUN | NODE_2 | {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, World(2, 3, 0, 1, 1, 2, "torchrun", **AT)),
    "torchrun, an agent a task": (SRUN | TORCHRUN | NODE_2 | {"SLURM_PROCID": "1", "SLURM_NODEID": "1"}, World(3, 4, 1, 2, 1, 2, "torchrun", **AT)),
    "torchrun, 2 workers in the only task of a step": (SRUN | TORCHRUN | {"SLURM_STEP_NUM_TASKS": "1"}, World(1, 2, 1, 2, launcher="torchrun", **AT)),
    "torchrun, an elastic job that lost an agent": (SRUN | TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3"}, World(1, 2, 1, 2, launcher="torchrun", **AT)),
    "torchrun in a batch script": (BATCH | TORCHRUN, World(1, 2, 1, 2, launcher="torchrun", **AT)),
    "accelerate launch --multi_gpu": (TORCHRUN | ACCELERATE, World(1, 2, 1, 2, launcher="accelerate", **AT)),
    "accelerate launch, 1 process": (ACCELERATE, World(launcher="accelerate")),
    "accelerate launch --mpirun_hostfile": (OPEN_MPI | ACCELERATE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, World(1, 2, 1, 2, 0, 1, "accelerate", HERE, job=MPI_NAME)),
    "srun": (SRUN, World(0, 2, 0, 1, 0, 2, "srun", **ON_NODE_1)),
    "srun, node 2 of 2": (SRUN | {"SLURM_PROCID": "1", "SLURM_NODEID": "1"}, World(1, 2, 0, 1, 1, 2, "srun", **ON_NODE_1)),
    "srun, 3 + 1 tasks: the third": (UNEVEN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "2"}, World(2, 4, 2, 3, 0, 2, "srun", **ON_NODE_1)),
    "srun, 3 + 1 tasks: the last": (UNEVEN | {"SLURM_PROCID": "3", "SLURM_NODEID": "1"}, World(3, 4, 0, 1, 1, 2, "srun", **ON_NODE_1)),
    "srun --gpus-per-node 3": (UNEVEN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_GPUS_ON_NODE": "3"}, World(2, 4, 2, 3, 0, 2, "srun", **ON_NODE_1)),
    "srun --gpus-per-task a100:1": (UNEVEN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_GPUS_PER_TASK": "a100:1", "SLURM_GPUS_ON_NODE": "1"}, World(2, 4, 2, 3, 0, 2, "srun", **ON_NODE_1)),
    "srun, one task": (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}, World(launcher="srun")),
    "srun --mpi=pmi2": (SRUN | {"PMI_RANK": "0", "PMI_SIZE": "2"}, World(0, 2, 0, 1, 0, 2, "srun", **ON_NODE_1)),
    "srun, an unrelated MASTER_ADDR": (SRUN | {"MASTER_ADDR": "somewhere"}, World(0, 2, 0, 1, 0, 2, "srun", **ON_NODE_1)),
    "srun, requeued": (SRUN | {"SLURM_RESTART_COUNT": "2"}, World(0, 2, 0, 1, 0, 2, "srun", ("node1",), job="slurm-try-1.0.2")),
    "a batch script": (BATCH, World()),
    "mpirun": (OPEN_MPI, World(1, 2, 1, 2, 0, 1, "mpirun", HERE, job=MPI_NAME)),
    "mpirun, 1 process": (OPEN_MPI | {f"OMPI_COMM_WORLD_{name}": "01"["SIZE" in name] for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")}, World(launcher="mpirun")),
    "mpirun, no job's name": (less(OPEN_MPI, "PMIX_NAMESPACE") | {"MASTER_PORT": "29500"}, World(1, 2, 1, 2, 0, 1, "mpirun", **AT)),
    "mpirun, an older one's job": (less(OPEN_MPI, "PMIX_NAMESPACE") | {"OMPI_MCA_ess_base_jobid": "716111873"}, World(1, 2, 1, 2, 0, 1, "mpirun", HERE, job=MPI_NAME)),
    "mpirun, node 1 of 2": (OPEN_MPI_2, World(0, 2, 0, 1, 0, 2, "mpirun", DAEMONS, job=MPI_NAME)),
    "mpirun, node 2 of 2": (MPI_NODE_2, World(1, 2, 0, 1, 1, 2, "mpirun", DAEMONS, job=MPI_NAME)),
    "mpirun -x MASTER_ADDR, node 1 of 2": (OPEN_MPI_2 | ELSEWHERE | FIRST, World(0, 2, 0, 1, 0, 2, "mpirun", ("node1", *DAEMONS), job=MPI_NAME)),
    "mpirun in a batch script": (BATCH | OPEN_MPI, World(1, 2, 1, 2, 0, 1, "mpirun", HERE, job=MPI_NAME)),
    "mpirun, its daemon in a step": (SRUN | MPI_NODE_2 | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, World(1, 2, 0, 1, 1, 2, "mpirun", DAEMONS, job=MPI_NAME)),
    "hydra, node 2 of 2": (HYDRA, World(1, 2, 0, 1, 1, 2, "mpirun", ("10.0.0.2",), 29500)),
    "hydra, one node": (HYDRA | {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, World(1, 2, 1, 2, 0, 1, "mpirun", HERE, 29500)),
}  # fmt: skip


@pytest.mark.parametrize("where", GOOD)
def test_the_world_of_every_launcher(where):
    environment, expected = GOOD[where]
    world = world_from(environment)
    if expected.job:
        assert 20_000 <= world.master_port < 32_000  # below the ports that the kernel hands out by itself
    assert world == (replace(expected, master_port=world.master_port) if expected.job else expected)
    assert world.is_main == (world.rank == 0)
    assert world.size == 1 or rank_from_env(environment) == (world.rank, world.local_rank)


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_environment_is_refused_with_variable_and_cure(wrong):
    environment, variable, cure = BROKEN[wrong]
    with pytest.raises(LauncherError) as caught:
        world_from(environment)
    problems = caught.value.problems
    assert [f" {variable}" in f" {problem}" and cure in problem for problem in problems].count(True) == 1, problems
    for problem in problems:  # those beside the expected one too: what, and what would be right
        assert re.match(r"[A-Z][A-Z_]+ (= |is )", problem), problem
        assert re.search(r"should |export|set it|unset|give |ask for|start distcnn|a port is", problem, re.IGNORECASE)


@pytest.mark.parametrize("given", ["RANK", "WORLD_SIZE"])
def test_each_of_several_missing_variables_is_named(given):
    with pytest.raises(LauncherError) as caught:
        world_from({given: BARE[given]})
    named = [problem.split()[0] for problem in caught.value.problems]
    assert named == [name for name in VARIABLES if name != given]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("text", ["", "two", "-1", "1.0", " 1"])
def test_not_a_number(name, text):
    with pytest.raises(LauncherError) as caught:
        world_from(BARE | {name: text})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} = {text!r} in the environment")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("gpu[07-09,12]-ib", "gpu07-ib"),
        ("gpu[12,07-09],login", "gpu12"),
        ("login,gpu[07-09]", "login"),
        ("rack[3-4]node[01-16]", "rack3node01"),
        ("a-1.example.org,b-2.example.org", "a-1.example.org"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert world_from(SRUN | {"SLURM_STEP_NODELIST": nodes}).master_addrs == (first,)
    assert world_from(less(SRUN, "SLURM_STEP_NODELIST") | {"SLURM_JOB_NODELIST": nodes}).master_addrs == (first,)


@pytest.mark.parametrize(
    ("counts", "sizes"), [("4", [4]), ("2(x2)", [2, 2]), ("3,1", [3, 1]), ("1,2(x3),1", [1, 2, 2, 2, 1])]
)
def test_the_tasks_of_a_step_make_one_world(counts, sizes):
    worlds, size = [], sum(sizes)
    for node, tasks in enumerate(sizes):
        for local in range(tasks):
            own = {"SLURM_PROCID": len(worlds), "SLURM_LOCALID": local, "SLURM_NODEID": node}
            shared = {"SLURM_STEP_NUM_TASKS": size, "SLURM_STEP_TASKS_PER_NODE": counts}
            worlds.append(world_from(SRUN | {name: str(value) for name, value in (own | shared).items()}))
    assert [world.rank for world in worlds] == list(range(size))
    places = [(node, local) for node, tasks in enumerate(sizes) for local in range(tasks)]
    assert [(world.node, world.local_rank) for world in worlds] == places
    assert [world.local_size for world in worlds] == [tasks for tasks in sizes for _ in range(tasks)]
    shared = {(w.size, w.nodes, w.master_addrs, w.master_port, w.job) for w in worlds}
    assert shared == {(size, len(sizes), ("node1",), worlds[0].master_port, STEP_NAME)}


def test_no_two_jobs_bear_one_name():
    changes = [{}, {"SLURM_JOB_ID": "2"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_CLUSTER_NAME": "two"},
               {"SLURM_JOB_ID": "11", "SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "11"}]  # fmt: skip
    names = [world_from(SRUN | change).job for change in changes]
    names += [world_from(OPEN_MPI | {"PMIX_NAMESPACE": name}).job for name in ("1", "716111873")]
    assert len(set(names)) == len(names)
    assert None not in names


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, (0, 0)),
        ({"RANK": "x", "SLURM_PROCID": "3"}, (0, 0)),  # the innermost launcher's, even where it is wrong
        ({"RANK": "3"}, (3, 0)),
        (SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (3, 1)),
        (SRUN | OPEN_MPI, (1, 1)),
        (SRUN | BARE, (1, 1)),
        (HYDRA, (1, 0)),
    ],
)
def test_who_speaks_is_known_without_a_world(environment, ranks):
    assert rank_from_env(environment) == ranks


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with the launcher of that text, which is made known by an entry point."""

    def installed(text):
        points = {"distcnn.launchers": {"flux": "launcher_for_test:Flux"}}
        install(tmp_path, "launcher_for_test", {"launcher_for_test.py": text}, points)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("distcnn.rank.LAUNCHERS", Registry("launchers", LAUNCHERS.builtin))

    yield installed
    sys.modules.pop("launcher_for_test", None)


def test_an_installed_package_adds_a_launcher(package):
    """Asked after torch, whose ranks it may have started, and before the schedulers, in whose jobs it may run."""
    package("""
from distcnn.distributed.launchers.base import Variables, with_address
from distcnn.distributed.world import World

class Flux:
    rank_names, local_rank_names = ("FLUX_TASK_RANK",), ("FLUX_TASK_LOCAL_ID",)

    def detect(self, environment):
        return "FLUX_TASK_RANK" in environment

    def world(self, environment):
        numbers = Variables(environment)
        rank, size = numbers.number("FLUX_TASK_RANK"), numbers.number("FLUX_JOB_SIZE", least=1)
        numbers.check({f"FLUX_TASK_RANK = {rank}: should be below FLUX_JOB_SIZE = {size}": rank >= size})
        return with_address(World(rank, size, rank, size, launcher="flux"), ("127.0.0.1",), job="flux-1")
""")
    ours = {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "1"}
    world = world_from(SRUN | OPEN_MPI | ours)
    assert world == World(1, 2, 1, 2, launcher="flux", master_addrs=HERE, master_port=world.master_port, job="flux-1")
    assert rank_from_env(ours | SRUN) == (1, 1)
    assert world_from(ours | BARE).launcher == "environment"
    assert world_from({}) == World()
    with pytest.raises(LauncherError, match="FLUX_TASK_RANK = 2: should be below"):
        world_from(ours | {"FLUX_TASK_RANK": "2"})


def test_a_launcher_that_cannot_be_imported_is_named_and_each_rank_says_so(package):
    package("import not_there_at_all")
    with pytest.raises(LauncherError, match=r"launcher flux: .*not_there_at_all.*; repair or uninstall the package"):
        world_from({})
    assert rank_from_env(SRUN | {"SLURM_PROCID": "1"}) == (0, 0)
    assert world_from(BARE).launcher == "environment"
