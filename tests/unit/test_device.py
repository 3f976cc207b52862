"""Which GPU a rank takes, whether two have taken one, and what each setting asks of the device; without a GPU."""

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch

from distcnn.config.schema import Config, TrainConfig
from distcnn.distributed import device as devices
from distcnn.distributed.device import (
    backend_of,
    device_problems,
    gpu_identity,
    gpu_index,
    may_share_gpus,
    nccl_version,
    set_up_device,
    slow_precision,
)
from distcnn.distributed.device_check import shared_gpus
from distcnn.distributed.world import World, world_from
from distcnn.errors import first_line

STEP = {"SLURM_STEP_NODELIST": "node1", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}  # fmt: skip
BARE = {"WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}

# How a launcher binds: the variables of rank r, the UUIDs of the GPUs that it sees, and the ranks that share one.
BINDINGS = {
    "torchrun: all ranks see all": (
        lambda r: BARE | {"RANK": f"{r}", "LOCAL_RANK": f"{r}"}, lambda r: "abcd", []),
    "a wrapper that sets CUDA_VISIBLE_DEVICES": (
        lambda r: BARE | {"RANK": f"{r}", "LOCAL_RANK": f"{r}"}, lambda r: "abcd"[r], []),
    "a wrapper that gives all the same": (
        lambda r: BARE | {"RANK": f"{r}", "LOCAL_RANK": f"{r}"}, lambda r: "a", [(0, 1, 2, 3)]),
    "srun --ntasks-per-gpu=1, --gpu-bind=single:1": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}"}, lambda r: "abcd"[r], []),
    "srun --gpus-per-task=1": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}", "SLURM_GPUS_PER_TASK": "1",
                          "SLURM_GPUS_ON_NODE": "1"}, lambda r: "abcd"[r], []),
    "srun --gpus-per-task=1 --gpu-bind=none": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}", "SLURM_GPUS_PER_TASK": "1",
                          "SLURM_GPUS_ON_NODE": "4"}, lambda r: "abcd", []),
    "srun --gpus-per-task=2": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}", "SLURM_GPUS_PER_TASK": "2"},
        lambda r: ("ab", "cd", "ef", "gh")[r], []),
    "srun, 4 tasks on 2 GPUs": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}", "SLURM_GPUS_ON_NODE": "2"},
        lambda r: "ab", [(0, 2), (1, 3)]),
    "two ranks bound to one of three": (
        lambda r: STEP | {"SLURM_PROCID": f"{r}", "SLURM_LOCALID": f"{r}"}, lambda r: "abca"[r], [(0, 3)]),
}  # fmt: skip


@pytest.fixture
def see(monkeypatch):
    """Let this process see GPUs of these UUIDs."""

    def see(uuids):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return see


@pytest.mark.parametrize(("environment", "visible", "shared"), BINDINGS.values(), ids=BINDINGS)
def test_each_rank_takes_a_gpu_of_its_own_where_there_is_one(see, environment, visible, shared):
    found = []
    for rank in range(4):
        see(visible(rank))
        world = world_from(environment(rank))
        assert not list(device_problems(Config(), world))
        found.append(gpu_identity(gpu_index(world)))
    problem = shared_gpus(found)
    assert bool(problem) == bool(shared)
    for ranks in shared:
        assert f"ranks {', '.join(map(str, ranks))} have the same GPU" in problem


def test_gpus_of_two_hosts_are_never_the_same(see, monkeypatch):
    see("a")
    found = []
    for host in ("node1", "node2"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        found.append(gpu_identity(0))
    assert shared_gpus(found) == ""


def test_parts_of_one_gpu_are_told_apart(see, monkeypatch):
    """CUDA may give each instance the UUID of the whole; their names stand in CUDA_VISIBLE_DEVICES."""
    see("a")
    found = []
    for name in ("MIG-1", "MIG-2", "MIG-2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        found.append(gpu_identity(0))
    assert shared_gpus(found[:2]) == ""
    assert "ranks 1, 2 have the same GPU, MIG-2 on" in shared_gpus(found)


@pytest.mark.parametrize(
    ("variable", "version", "may"),
    [
        ("1", (2, 30, 7), True),
        ("1", (2, 29, 7), False),
        ("0", (2, 30, 7), False),
        (None, (3, 0, 0), False),
        ("1", (3, 0, 0), True),
    ],
)
def test_nccl_shares_a_gpu_where_it_can_and_was_asked_to(monkeypatch, variable, version, may):
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    if variable is not None:
        monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", variable)
    monkeypatch.setattr(devices, "nccl_version", lambda: version)
    assert may_share_gpus() is may


@pytest.mark.parametrize(("number", "version"), [(23007, (2, 30, 7)), (22809, (2, 28, 9)), (30001, (3, 0, 1))])
def test_the_version_is_that_of_the_library_that_is_loaded(monkeypatch, number, version):
    def get_version(reference):
        reference._obj.value = number
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(ncclGetVersion=get_version))
    assert nccl_version() == version


def test_without_nccl_there_is_no_version(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert nccl_version() is None


@pytest.mark.parametrize(
    ("backend", "on", "expected"),
    [
        ("auto", "cpu", "gloo"),
        ("auto", "cuda:1", "nccl"),
        ("gloo", "cuda:1", "gloo"),
        ("nccl", "cuda:1", "nccl"),
        ("gloo", "cpu", "gloo"),
    ],
)
def test_the_backend_of_a_run(backend, on, expected):
    assert backend_of(Config(train=TrainConfig(backend=backend)), torch.device(on)) == expected


@pytest.mark.parametrize(
    ("train", "gpus", "version", "ranks", "key", "words"),
    [
        ({"device": "cuda"}, "", (2, 14), 1, "train.device", "no CUDA device is visible"),
        ({"backend": "nccl"}, "", (2, 14), 1, "train.backend", "none is visible"),
        ({"backend": "gloo"}, "a", (2, 10), 2, "train.backend", "needs PyTorch 2.11"),
        ({"backend": "gloo"}, "a", (2, 11), 2, None, ""),
        ({"backend": "gloo"}, "a", (2, 10), 1, None, ""),
        ({"backend": "gloo", "device": "cpu"}, "a", (2, 10), 2, None, ""),
        ({"backend": "gloo"}, "", (2, 10), 2, None, ""),
    ],
)
def test_what_the_devices_cannot_do(see, monkeypatch, train, gpus, version, ranks, key, words):
    see(gpus)
    monkeypatch.setattr(devices, "torch_version", lambda: version)
    found = dict(device_problems(Config(train=TrainConfig(**train)), World(0, ranks, 0, ranks)))
    assert [*found] == ([(key,)] if key else [])
    assert words in "".join(found.values())


@pytest.mark.parametrize(
    ("on", "train", "said"),
    [
        ("cuda:0", {}, True),
        ("cuda:0", {"tf32": True}, False),
        ("cuda:0", {"precision": "bf16"}, False),
        ("cpu", {}, False),
    ],
)
def test_the_slowest_way_to_compute_is_said_to_be_that(on, train, said):
    assert bool(slow_precision(Config(train=TrainConfig(**train)), torch.device(on))) is said


def test_nccls_own_reason_is_told():
    text = (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN "
        "for details), NCCL version 2.30.7\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
    )
    line = first_line(RuntimeError(text))
    assert line.startswith("NCCL error in")
    assert line.endswith("(Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000)")
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError()) == "RuntimeError"
    assert first_line(RuntimeError("one\nLast error:\n")) == "one"


@pytest.mark.parametrize("deterministic", [True, False])
def test_strict_refuses_what_has_no_deterministic_form_and_lasts_no_longer(monkeypatch, deterministic):
    def put():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    def set_up(deterministic):
        set_up_device(Config(train=TrainConfig(device="cpu", threads=1, deterministic=deterministic)), World())

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_up(deterministic)
    put()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    for _ in range(2):
        set_up("strict")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
            put()
    set_up(deterministic)  # another training in the same process
    put()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_process_that_is_strict_by_itself_stays_so():
    torch.use_deterministic_algorithms(True)
    try:
        set_up_device(Config(train=TrainConfig(device="cpu", threads=1)), World())
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_asked_of_cudnn(see, monkeypatch, deterministic):
    see("ab")
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    config = Config(train=TrainConfig(threads=1, deterministic=deterministic, tf32=not deterministic))
    device, _ = set_up_device(config, World(3, 4, 3, 4))
    cudnn = torch.backends.cudnn
    assert taken == [device] == [torch.device("cuda", 1)]
    assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, not deterministic)
    assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (not deterministic, not deterministic)
    torch.backends.cuda.matmul.allow_tf32 = False
