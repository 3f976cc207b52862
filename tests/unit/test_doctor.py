"""distcnn doctor on GPUs, as far as no process is needed: what is found of a rank's devices, and what goes over a link."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distcnn.distributed.world import World
from distcnn.doctor import devices as doctor_devices
from distcnn.doctor import network as doctor_network
from distcnn.doctor.devices import Gpu, devices, own_gpu, usable
from distcnn.doctor.findings import RankReport, fail, merged, ok, warn
from distcnn.doctor.links import slow_links
from distcnn.doctor.nccl import log_warnings
from distcnn.doctor.network import CUDA_SIZES, MESSAGE, Transport, all_reduces, message_size
from distcnn.doctor.ranks import gpus_of_ranks
from distcnn.doctor.situation import Situation

MIB = 1 << 20


@pytest.fixture
def gpus(monkeypatch):
    """As if this process saw so many GPUs; what is done on one fails as it does without."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}")
        monkeypatch.setattr(doctor_devices, "nccl_version", lambda: (2, 30, 7))

    return pretend


def situation(world):
    return Situation(world, {}, Path("runs"), Path("cache"))


@pytest.mark.parametrize(
    ("count", "local_size", "status", "text"),
    [
        (4, 4, "ok", "4 GPUs: H0, H1, H2, H3; CUDA"),
        (1, 4, "ok", "1 GPU: H0; CUDA"),  # each rank sees its own: Slurm's --gpu-bind, PBS
        (2, 4, "ok", "2 GPUs: H0, H1; CUDA"),  # each rank sees its own two; if not, it shows when they meet
        (4, 1, "warn", "1 in use"),
        (0, 4, "ok", "no GPU; gloo"),
    ],
)
def test_devices_of_one_rank(gpus, monkeypatch, count, local_size, status, text):
    gpus(count)
    monkeypatch.setattr(doctor_devices.shutil, "which", lambda name: None)
    (found,) = devices(situation(World(size=4, local_size=local_size)))
    assert found.status == status
    assert text in found.what
    assert ("NCCL 2.30.7" in found.what) == (count > 0)
    assert found.fix == ("" if status == "ok" else "start one rank per GPU: --nproc_per_node=4, --ntasks-per-node=4")


def test_a_machine_without_nccl(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setattr(doctor_devices, "nccl_version", lambda: None)
    (found,) = devices(situation(World()))
    assert "NCCL none" in found.what


def test_a_gpu_that_cannot_be_used_is_a_failure_and_counts_as_none(gpus, monkeypatch):
    gpus(2)
    taken = []

    def set_device(index):
        taken.append(index)
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might")

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    gpu = own_gpu(World(3, 4, 3, 4), "a")
    assert taken == [1]
    assert gpu.identity == ""
    (found,) = usable(gpu)
    assert found.status == "fail"
    assert found.what == "GPU 1 cannot be used: CUDA error: all CUDA-capable devices are busy or unavailable"
    assert "nvidia-smi" in found.fix
    assert [one.status for one in gpus_of_ranks([Gpu("a", 0, "GPU-1 on a"), gpu])] == ["fail"]
    assert gpus_of_ranks([gpu, gpu]) == []


def of(*names, **others):
    return [Gpu("a", identity=name and f"{name} on a", **others) for name in names]


def test_each_rank_on_a_gpu_of_its_own_is_well_and_sharing_is_where_all_can():
    (found,) = gpus_of_ranks(of("GPU-1", "GPU-2"))
    assert (found.status, found.what) == ("ok", "2 ranks, each with a usable GPU")
    assert gpus_of_ranks(of("", "")) == []
    (found,) = gpus_of_ranks(of("GPU-1", "GPU-1", shared=True))
    assert found.status == "ok"
    (found,) = gpus_of_ranks([*of("GPU-1", shared=True), *of("GPU-1")])
    assert found.what == "ranks 0, 1 have the same GPU, GPU-1 on a"
    (found,) = gpus_of_ranks(of("GPU-1", "GPU-1"), over_gloo=True)
    assert found.status == "ok"


def test_of_many_ranks_without_a_gpu_a_few_are_named():
    here = [Gpu("a", identity=f"GPU-{i}") for i in range(8)]
    (found,) = gpus_of_ranks([*here, *[Gpu("b")] * 16])
    assert found.what.startswith("ranks 8, 9, 10, 11, 12, 13, 14, 15 and 8 more on b: no GPU")
    assert "nvidia-smi on b" in found.fix


def test_the_last_reasons_of_nccl(tmp_path):
    log = tmp_path / "nccl.txt"
    assert log_warnings(log) == []
    lines = [f"a:1:1 [0] init.cc:{i} NCCL WARN reason {i}" for i in range(5)]
    log.write_text("NCCL version 2.30.7\n" + "\n".join(lines) + "\na:1:1 [0] NCCL INFO Abort\n")
    assert log_warnings(log) == ["reason 2", "reason 3", "reason 4"]


@pytest.mark.parametrize(
    ("speed", "size"), [(0.1e9, 4 * MIB), (1.25e9, 23 * MIB), (3e9, 57 * MIB), (50e9, 256 * MIB), (4e11, 256 * MIB)]
)
def test_a_message_takes_long_enough_that_latency_does_not_count(speed, size):
    assert message_size(speed) == size


@pytest.fixture
def exchanges(monkeypatch):
    """What goes over a group of two, on pretend CUDA tensors; and the device's clock, which moves with each exchange:
    50 µs of latency, and then 300 GB/s.
    """
    seen, now = [], [0.0]

    def passed(kind, tensor):
        assert tensor.device.type == "cuda"
        seen.append((kind, tensor.nbytes))
        now[0] += 50e-6 + tensor.nbytes / 300e9

    def batch(operations):
        passed(*operations[0])
        return []

    fake = SimpleNamespace(
        all_reduce=lambda data, group: passed("all_reduce", data),
        broadcast=lambda word, source, group: None,
        barrier=lambda group: None,
        isend="isend",
        irecv="irecv",
        P2POp=lambda operation, tensor, peer, group: (operation, tensor),
        batch_isend_irecv=batch,
    )
    monkeypatch.setattr(doctor_network, "dist", fake)
    monkeypatch.setattr(doctor_network, "_gather", lambda transport, own: [own])
    monkeypatch.setattr(doctor_network, "mark", lambda device: seen.append(("mark", 0)) or now[0])
    monkeypatch.setattr(doctor_network, "wait", lambda device: None)
    return seen


def test_on_cuda_all_reduces_go_up_to_256_mib_several_at_once(exchanges):
    told = []
    transport = Transport(World(0, 2), torch.device("cuda", 0), "nccl", "gloo", told.append)
    with FakeTensorMode():
        table = all_reduces(transport)
    assert [one.size for one in table] == list(CUDA_SIZES)
    assert table[-1].size == 256 * MIB
    assert table[-1].bandwidth == pytest.approx(300e9, rel=0.1)
    assert table[0].seconds == pytest.approx(50e-6, rel=0.1)
    assert exchanges[-12:] == [("mark", 0), *[("all_reduce", 256 * MIB)] * 10, ("mark", 0)]
    assert told == [f"all-reduces of {size} bytes" for size in CUDA_SIZES]


def test_a_fast_link_is_measured_again_by_messages_that_fill_it(exchanges):
    """At 4 MiB a link of 300 GB/s looks like one of 37: half the rate could not be seen."""
    transport = Transport(World(0, 2), torch.device("cuda", 0), "nccl", "gloo")
    with FakeTensorMode():
        _, found = doctor_network.measure(transport, ["a", "a"])
    assert found == {(0, 1): pytest.approx(300e9, rel=0.15)}
    assert {size for kind, size in exchanges if kind == "isend"} == {4, MESSAGE, 256 * MIB}


def test_half_the_rate_of_nvlink_is_a_slow_link():
    rates = {(i, j): 300e9 for i in range(4) for j in range(4) if i != j} | {(2, 3): 150e9}
    assert slow_links(rates, ["a"] * 4) == [(2, 3)]
    small = {pair: MESSAGE / (80e-6 + MESSAGE / rate) for pair, rate in rates.items()}
    assert slow_links(small, ["a"] * 4) == []


def test_what_several_ranks_have_is_one_row():
    reports = [
        RankReport(0, "a", [ok("memory", "3 GB"), warn("cores", "1 core", "more")]),
        RankReport(1, "b", [ok("memory", "4 GB"), warn("cores", "1 core", "more"), fail("disk", "full", "room")]),
    ]
    rows = [(row["name"], row["what"], row["ranks"], row["hosts"]) for row in merged(reports)]
    both = [0, 1], ["a", "b"]
    assert rows == [("memory", "3 GB", *both), ("cores", "1 core", *both), ("disk", "full", [1], ["b"])]
