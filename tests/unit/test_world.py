"""World from an environment: whole, absent, or one clear message."""

import pytest

from distcnn.errors import BadInput
from distcnn.parallel.world import TORCH_VARIABLES, World, process_group, world_from

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def problems(environment):
    with pytest.raises(BadInput) as caught:
        world_from(environment)
    return caught.value.problems


def test_no_launcher_is_a_world_of_one():
    assert world_from({}) == world_from({"PATH": "/bin", "MASTER_ADDR": "somewhere"}) == World(0, 1, 0, 1, "single")
    assert world_from({}).is_main


def test_a_whole_environment():
    assert world_from(WHOLE) == World(3, 4, 1, 4, "environment")
    torchrun = WHOLE | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    assert world_from(torchrun) == World(3, 4, 1, 2, "torchrun")
    assert not world_from(torchrun).is_main
    assert world_from(WHOLE | {"RANK": "0"}).is_main


def test_one_process_needs_no_address():
    assert world_from({"RANK": "0", "WORLD_SIZE": "1"}) == World(launcher="environment")


@pytest.mark.parametrize("missing", TORCH_VARIABLES)
def test_one_missing_variable_is_named(missing):
    (problem,) = problems({name: value for name, value in WHOLE.items() if name != missing})
    assert problem.startswith(f"{missing} is not set")


@pytest.mark.parametrize("given", ["RANK", "WORLD_SIZE"])
def test_each_of_several_missing_variables_is_named(given):
    found = problems({given: WHOLE[given]})
    assert [problem.split()[0] for problem in found] == [name for name in TORCH_VARIABLES if name != given]
    assert all(f"but {given} is" in problem for problem in found)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "4"}, ["RANK = 4", "WORLD_SIZE = 4"]),
        ({"RANK": "0", "WORLD_SIZE": "0"}, ["RANK = 0", "WORLD_SIZE = 0"]),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, ["LOCAL_RANK = 2", "LOCAL_WORLD_SIZE = 2"]),
        ({"LOCAL_WORLD_SIZE": "5"}, ["LOCAL_WORLD_SIZE = 5", "WORLD_SIZE = 4"]),
    ],
)
def test_numbers_that_contradict_each_other(changes, named):
    (problem,) = problems(WHOLE | changes)
    assert all(name in problem for name in named)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("text", ["", "two", "-1", "1.0"])
def test_not_a_number(name, text):
    (problem,) = problems(WHOLE | {name: text})
    assert problem.startswith(f"{name} = {text!r} in the environment")


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "MPI")],
)
def test_several_tasks_that_do_not_know_of_each_other(name, launcher):
    (problem,) = problems({name: "4", "SLURM_PROCID": "2", "OMPI_COMM_WORLD_RANK": "2"})
    assert problem.startswith(f"{name} = 4")
    assert launcher in problem
    assert world_from({name: "1"}) == World()
    assert world_from({name: "4", **WHOLE}) == World(3, 4, 1, 4, "environment")


def test_a_single_process_makes_no_group():
    import torch.distributed as dist

    with process_group(World(), cuda=False, timeout_s=1):
        assert not dist.is_initialized()
