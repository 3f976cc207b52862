"""Ranks that agree on a port by their job's name: hand-made mpirun environments, real processes."""

import os
import socket
import time
from itertools import count
from queue import Queue
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread

import pytest
import torch
import torch.distributed as dist

from distcnn.distributed.network import network_interface
from distcnn.distributed.rendezvous import process_group, torch_variables
from distcnn.distributed.store import group_store
from distcnn.distributed.world import World, world_from
from tests.broken_environments import HYDRA, less
from tests.ranks import TIMEOUT, Ranks, bare, free_port, run_ranks, start
from tests.records import losses

SHORT = ("--train.duration", "3step", "--eval.every", "3step", "--train.threads", "1", "--train.timeout", "60")


def mpirun(rank, ranks, job):
    """The variables of one rank on one node."""
    numbers = {"RANK": rank, "SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": ranks}
    return {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in numbers.items()} | {"PMIX_NAMESPACE": str(job)}


def first_port(job):
    return world_from(mpirun(0, 2, job)).master_port


def start_job(config, name, job, ranks, size) -> Ranks:
    """These ranks of a job of that size."""
    return start(["train", config, "--name", name, *SHORT], [mpirun(rank, size, job) for rank in ranks])


def wait_for_listener(port):
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at {port}")


@pytest.mark.slow
def test_two_jobs_with_one_first_port_do_not_mix(synthetic):
    """The first job's rank 0 holds the port and waits, while the second job comes, trains and goes."""
    seen: dict[int, int] = {}
    one, other = next((seen[port], job) for job in count() if seen.setdefault(port := first_port(job), job) != job)
    runs = synthetic.parent / "runs"
    with start_job(synthetic, "one", one, [0], 2) as first:
        wait_for_listener(first_port(one))
        with start_job(synthetic, "other", other, [0, 1], 2) as whole:
            assert whole.wait() == [0, 0], whole.err()
        assert first[0].poll() is None  # nobody of the other job was taken for its own
        with start_job(synthetic, "one", one, [1], 2) as second:
            assert first.wait() + second.wait() == [0, 0], first.err() + second.err()
    assert len(losses(runs / "one")) == 4
    assert losses(runs / "one") == losses(runs / "other")


@pytest.mark.slow
def test_three_ranks_pass_over_ports_of_other_programs(synthetic):
    """The first two ports are taken; the losses are those of the same ranks under another launcher."""
    job = os.getpid()
    others = [TCPServer(("", first_port(job) + i), BaseRequestHandler) for i in range(2)]
    for server in others:  # they hang up on whoever calls
        Thread(target=server.serve_forever, daemon=True).start()
    try:
        with start_job(synthetic, "mpirun", job, [0, 1, 2], 3) as ranks:
            assert ranks.wait() == [0, 0, 0], ranks.err()
    finally:
        for server in others:
            server.shutdown()
            server.server_close()
    assert run_ranks(["train", synthetic, "--name", "bare", *SHORT], 3).codes == [0, 0, 0]
    runs = synthetic.parent / "runs"
    assert len(losses(runs / "mpirun")) == 4
    assert losses(runs / "mpirun") == losses(runs / "bare")


def test_a_program_that_never_answers_at_the_first_port(synthetic):
    job = f"mute-{os.getpid()}"
    with (
        socket.create_server(("", first_port(job))),
        start_job(synthetic, "mpirun", job, [0, 1], 2) as ranks,
    ):
        assert ranks.wait() == [0, 0], ranks.err()


def test_hydra_on_one_node_with_a_port_alone(synthetic):
    """MPICH's mpiexec -genv MASTER_PORT: the address is known, the ranks are on one node."""
    shared = less(HYDRA, "MASTER_ADDR") | {"MPI_LOCALNRANKS": "2", "MASTER_PORT": str(free_port())}
    ranks = [shared | {"PMI_RANK": rank, "MPI_LOCALRANKID": rank} for rank in "01"]
    outcome = run_ranks(["train", synthetic, *SHORT], ranks)
    assert outcome.codes == [0, 0], outcome.err


def test_ranks_with_different_settings_do_not_train_together(synthetic, tmp_path):
    """One rank is told to use the other engine, as when a launcher hands its variables to one node only."""
    one, other = bare(2)
    train = ["train", synthetic, *SHORT, "--engine"]
    with start([*train, "ddp"], [one]) as first, start([*train, "accelerate"], [other]) as second:
        assert first.wait() + second.wait() == [1, 1]
        assert "engine is DDPEngine on rank 0, AccelerateEngine on rank 1" in first.err()
        assert "Traceback" not in first.err() + second.err()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("gpus", "may", "problem"),
    [
        ("abc", "", ""),
        ("aaa", "012", ""),
        ("aba", "02", "ranks 0, 2 have the same GPU, a:"),
        ("aaa", "12", "ranks 0, 1, 2 have the same GPU, a:"),
        ("abba", "", "ranks 0, 3 have the same GPU, a; ranks 1, 2 have the same GPU, b:"),
    ],
)
def test_ranks_with_one_gpu_are_refused_and_what_is_on_the_host_needs_none(gpus, may, problem):
    """`may`: the ranks whose NCCL may share a GPU; where it is not all of them, none goes on to wait for the others."""
    ranks = [
        {**one, "GPU": gpu} | ({"MAY": ""} if str(rank) in may else {})
        for rank, (one, gpu) in enumerate(zip(bare(len(gpus)), gpus, strict=True))
    ]
    outcome = run_ranks([], ranks, program=["-m", "tests.distributed.shared_gpus"])
    assert outcome.codes == [0] * len(gpus), outcome.err
    said = outcome.out.splitlines()
    if problem:
        assert all(f"rank {rank}: train.device: {problem}" in line for rank, line in enumerate(said))
        assert all("train.backend gloo" in line for line in said)
    else:
        assert said == [f"rank {rank}: [0, 1, 2] of rank 0 6" for rank in range(3)]


def test_ranks_without_a_gpu_are_named_and_none_waits():
    ranks = [{**one, "GPU": gpu} for one, gpu in zip(bare(3), ["a", "none", "b"], strict=True)]
    outcome = run_ranks([], ranks, program=["-m", "tests.distributed.shared_gpus"])
    assert outcome.codes == [0, 0, 0], outcome.err
    said = [f"rank {rank}: train.device: 1 of 3 ranks see no GPU: rank 1 on " for rank in range(3)]
    assert all(line.startswith(begin) for line, begin in zip(outcome.out.splitlines(), said, strict=True))


def test_without_a_gpu_nccl_says_so_and_none_waits():
    ranks = [{**one, "GPU": f"{rank}"} for rank, one in enumerate(bare(2))]
    program = """
import os, torch
from distcnn.distributed import device_check
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import world_from
device_check.gpu_identity = lambda _: os.environ["GPU"]
try:
    with process_group(world_from(os.environ), device=torch.device("cuda", 0), backend="nccl", timeout_s=60): pass
except Exception as error:
    print(type(error).__name__, "could not reach the others at" in str(error))
"""
    outcome = run_ranks([], ranks, program=["-c", program])
    assert outcome.out.splitlines() == ["RendezvousError True"] * 2, outcome.err


def test_a_group_does_not_hear_the_one_before_it():
    """Ranks of a torchrun agent's store, which keeps what ranks that have died since have said."""
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(f"distcnn/here/{rank}", "dead")
    found = Queue()

    def rank(number):
        part = group_store(store, World(number, 3, number, 3), TIMEOUT)
        part.set(f"from {number}", "")
        part.wait([f"from {other}" for other in range(3)])
        found.put(number)

    first = [Thread(target=rank, args=(0,)), Thread(target=rank, args=(1,))]
    for thread in first:
        thread.start()
    time.sleep(0.2)
    assert found.empty()  # the dead rank 2 was not taken for a living one
    rank(2)
    for thread in first:
        thread.join()
    assert found.qsize() == 3


def test_a_group_names_who_is_missing():
    with pytest.raises(TimeoutError, match="missing: rank 1, 2"):
        group_store(dist.HashStore(), World(0, 3, 0, 3), 0.1)


def test_a_single_process_makes_no_group():
    with process_group(World(), device=torch.device("cpu"), timeout_s=1):
        assert not dist.is_initialized()


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SECOND = World(1, 2, 1, 2, launcher="mpirun", master_addrs=("127.0.0.1",), master_port=1)


@pytest.fixture
def no_launcher(monkeypatch):
    """No variable of torch is set, and each is put back afterwards."""
    for name in (*VARIABLES, "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("given", [None, "eth7"])
@pytest.mark.usefixtures("no_launcher")
def test_a_given_interface_is_kept(monkeypatch, given):
    if given:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
    with torch_variables(SECOND):
        assert os.environ["GLOO_SOCKET_IFNAME"] == (given or network_interface(SECOND))


@pytest.mark.usefixtures("no_launcher")
def test_torchs_variables_are_set_inside_and_only_there(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")  # what the launcher has set is left alone

    def inside():
        with torch_variables(SECOND):
            assert [os.environ[name] for name in VARIABLES] == ["1", "two", "1", "2", "127.0.0.1", "1"]
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert [name for name in VARIABLES if name in os.environ] == ["WORLD_SIZE"]


def test_libraries_find_torchs_variables_under_every_launcher_while_there_is_a_group():
    program = f"""
import os, torch
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import world_from
with process_group(world_from(os.environ), device=torch.device("cpu"), timeout_s=60):
    print(*[os.environ[name] for name in {VARIABLES[:4]}], torch.distributed.get_world_size())
print([name for name in {VARIABLES} if name in os.environ])
"""
    outcome = run_ranks([], [mpirun(rank, 2, f"named-{os.getpid()}") for rank in range(2)], program=["-c", program])
    assert outcome.out.splitlines() == ["0 2 0 2 2", "[]", "1 2 1 2 2", "[]"], outcome.err


TRAINS = """
import gc, os, socket, sys
gc.disable()  # what refers to itself in a circle stays
import distcnn
distcnn.train(sys.argv[1], {"tracking.console": False, "train.duration": "2step"})
if os.environ["RANK"] == "0":
    socket.create_server(("127.0.0.1", int(os.environ["MASTER_PORT"]))).close()
    print("the port is free")
"""


def test_a_training_that_has_ended_gives_its_port_back(synthetic):
    outcome = run_ranks([synthetic], 2, program=("-c", TRAINS))
    assert outcome.codes == [0, 0], outcome.err
    assert "the port is free" in outcome.out
