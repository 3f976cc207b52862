"""Ranks that agree on a port by their job's name: hand-made mpirun environments, real processes."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread

import pytest
import torch.distributed as dist
from conftest import TIMEOUT, clean_environment, metrics, run_ranks

from distcnn.parallel.meeting import network_interface, process_group
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


def test_a_single_process_makes_no_group():
    with process_group(World(), cuda=False, timeout_s=1):
        assert not dist.is_initialized()


@pytest.fixture
def stand_in(monkeypatch):
    """A meeting of two, without the other one."""
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever becomes of it
        monkeypatch.delenv(name)
    return World(1, 2, 1, 2, launcher="mpirun", master_addrs=("127.0.0.1",), master_port=1, gpu=0)


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
            assert [os.environ[name] for name in names] == ["1", "two", "0", "2"]
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert {name for name in os.environ if name != "GLOO_SOCKET_IFNAME"} == before
