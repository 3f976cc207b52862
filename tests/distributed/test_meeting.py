"""Ranks that agree on a port by their job's name: hand-made mpirun environments, real processes."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from queue import Queue
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread

import pytest
import torch.distributed as dist
from broken_environments import BARE, HYDRA, less
from conftest import TIMEOUT, clean_environment, free_port, metrics, run_ranks

from distcnn.parallel.meeting import _fresh, network_interface, process_group
from distcnn.parallel.world import World, world_from

SHORT = ("--train.duration", "3step", "--eval.every", "3step", "--train.threads", "1", "--train.timeout", "60")


def mpirun(rank, ranks, job):
    """The variables of one rank on one node."""
    numbers = {"RANK": rank, "SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": ranks}
    return {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in numbers.items()} | {"PMIX_NAMESPACE": str(job)}


def first_port(job):
    return world_from(mpirun(0, 2, job)).master_port


@contextmanager
def started(config, name, job, ranks, size):
    """These ranks of a job of that size."""
    command = [sys.executable, "-m", "distcnn", "train", config, "--name", name, *SHORT]
    environments = [clean_environment() | mpirun(rank, size, job) for rank in ranks]
    processes = [subprocess.Popen(command, env=environment) for environment in environments]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def codes(processes):
    return [process.wait(TIMEOUT) for process in processes]


def losses(config, name):
    return [(line["kind"], line["loss"]) for line in metrics(config.parent / "runs" / name) if line["kind"] != "event"]


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
    with started(synthetic, "one", one, [0], 2) as first:
        wait_for_listener(first_port(one))
        with started(synthetic, "other", other, [0, 1], 2) as whole:
            assert codes(whole) == [0, 0]
        assert first[0].poll() is None  # nobody of the other job was taken for its own
        with started(synthetic, "one", one, [1], 2) as second:
            assert codes([*first, *second]) == [0, 0]
    assert len(losses(synthetic, "one")) == 4
    assert losses(synthetic, "one") == losses(synthetic, "other")


@pytest.mark.slow
def test_three_ranks_pass_over_ports_of_other_programs(synthetic):
    """The first two ports are taken; the losses are those of the same ranks under another launcher."""
    job = os.getpid()
    others = [TCPServer(("", first_port(job) + i), BaseRequestHandler) for i in range(2)]
    for server in others:  # they hang up on whoever calls
        Thread(target=server.serve_forever, daemon=True).start()
    try:
        with started(synthetic, "mpirun", job, [0, 1, 2], 3) as ranks:
            assert codes(ranks) == [0, 0, 0]
    finally:
        for server in others:
            server.shutdown()
            server.server_close()
    assert run_ranks(["train", synthetic, "--name", "bare", *SHORT], 3).codes == [0, 0, 0]
    assert len(losses(synthetic, "mpirun")) == 4
    assert losses(synthetic, "mpirun") == losses(synthetic, "bare")


def test_a_program_that_never_answers_at_the_first_port(synthetic):
    job = f"mute-{os.getpid()}"
    with (
        socket.create_server(("", first_port(job))),
        started(synthetic, "mpirun", job, [0, 1], 2) as ranks,
    ):
        assert codes(ranks) == [0, 0]


def test_hydra_on_one_node_with_a_port_alone(synthetic):
    """MPICH's mpiexec -genv MASTER_PORT: the address is known, the ranks are on one node."""
    shared = clean_environment() | less(HYDRA, "MASTER_ADDR")
    shared |= {"MPI_LOCALNRANKS": "2", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "distcnn", "train", synthetic, *SHORT]
    own = [{"PMI_RANK": rank, "MPI_LOCALRANKID": rank} for rank in "01"]
    assert codes([subprocess.Popen(command, env=shared | one) for one in own]) == [0, 0]


def test_ranks_with_different_settings_do_not_train_together(synthetic, tmp_path):
    """One rank is told to use the other engine, as when a launcher hands its variables to one node only."""
    world = BARE | {"MASTER_PORT": str(free_port())}
    processes = []
    for rank, engine in enumerate(("ddp", "accelerate")):
        own = clean_environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "distcnn", "train", synthetic, *SHORT, "--engine", engine]
        processes.append(subprocess.Popen(command, env=own, text=True, stderr=subprocess.PIPE))
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "engine is DDPEngine on rank 0, AccelerateEngine on rank 1" in errors[0]
    assert "Traceback" not in "".join(errors)
    assert not (tmp_path / "runs").exists()


def test_a_group_does_not_hear_the_one_before_it():
    """Ranks of a torchrun agent's store, which keeps what ranks that have died since have said."""
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(f"distcnn/here/{rank}", "dead")
    found = Queue()

    def rank(number):
        part = _fresh(store, World(number, 3, number, 3), TIMEOUT)
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
        _fresh(dist.HashStore(), World(0, 3, 0, 3), 0.1)


def test_a_single_process_makes_no_group():
    with process_group(World(), cuda=False, timeout_s=1):
        assert not dist.is_initialized()


@pytest.fixture
def stand_in(monkeypatch):
    """A meeting of two, without the other one."""
    monkeypatch.setattr("distcnn.parallel.meeting._meet", lambda *_: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever becomes of it
        monkeypatch.delenv(name)
    return World(1, 2, 1, 2, launcher="mpirun", master_addrs=("127.0.0.1",), master_port=1)


@pytest.mark.parametrize("given", [None, "eth7"])
def test_a_given_interface_is_kept(stand_in, monkeypatch, given):
    if given:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
    with process_group(stand_in, cuda=False, timeout_s=1):
        assert os.environ["GLOO_SOCKET_IFNAME"] == (given or network_interface(stand_in))


def test_torchs_variables_are_set_inside_and_only_there(stand_in, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")  # what the launcher has set is left alone
    before = {name for name in os.environ if name != "GLOO_SOCKET_IFNAME"}

    def inside():
        with process_group(stand_in, cuda=False, timeout_s=1):
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            assert [os.environ[name] for name in names] == ["1", "two", "1", "2"]
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert {name for name in os.environ if name != "GLOO_SOCKET_IFNAME"} == before
