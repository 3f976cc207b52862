"""How the ranks find each other: the address, a free port, the network interface, the process group."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psutil
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before a group stands: see process_group
from torch.distributed.rendezvous import rendezvous

from distcnn.distributed.device import Backend, gpu_identity, may_share_gpus
from distcnn.distributed.memory import explain_out_of_memory
from distcnn.distributed.patience import patiently
from distcnn.distributed.shutdown import watch_group
from distcnn.distributed.world import World
from distcnn.errors import InputError, LauncherError, RendezvousError, first_line
from distcnn.files import waiting
from distcnn.text import plural

_PORTS = 64  # tried one after another from world.master_port on, where the ranks agree on one themselves


@contextmanager
def process_group(world: World, *, device: torch.device, backend: Backend = "gloo", timeout_s: float) -> Iterator[Any]:
    """The ranks' meeting; yields its store. Nothing at all, and None, at world size 1.

    Over NCCL go CUDA tensors only: what is on the host (numbers, Python objects, the answers of rank 0) goes over gloo
    beside it. That waits for no GPU, and raises when another rank has died, where NCCL would stand still. Over gloo
    go both.

    On CUDA the caller has set the current device already, so that no rank opens a context on GPU 0. After an
    exception the group is not taken down in order: other ranks may stand in a collective, and nobody may wait
    for them. Inside it, torch's variables are set under every launcher, for libraries that look at them (Accelerate).

    torch.distributed.nn, whose functions have the group of the time of their import as a default and would hold it for
    good, is imported before there is one (otherwise the first DistributedDataParallel does it).

    Raises RendezvousError when the ranks cannot meet, LauncherError when the port is another program's, and InputError
    on all ranks where some have the same GPU and the backend cannot have it.
    """
    if world.size == 1:
        yield None
        return
    own = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
    }
    own |= {"MASTER_ADDR": world.master_addrs[0], "MASTER_PORT": world.master_port}  # type: ignore[dict-item]
    added = {name: str(value) for name, value in own.items() if name not in os.environ}
    if interface := network_interface(world):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.update(added)
    try:
        yield _meet(world, device, backend, timeout_s)
    finally:
        for name in added:
            os.environ.pop(name, None)
    dist.destroy_process_group()


def _meet(world: World, device: torch.device, backend: Backend, timeout_s: float) -> Any:
    host, port = world.master_addrs[0], world.master_port
    where, at = f"rank {world.rank} of {world.size} on {socket.gethostname()}", f"{host}:{port}"
    try:
        with waiting(f"the other {world.size - 1} ranks at {at}"):
            if backend == "nccl":  # its flight recorder: each rank's last exchanges, dumped where one has timed out
                os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
                os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
            # A program at the port that never answers: PyTorch's store would wait for it without end.
            silent = "what listens there, perhaps another program, has not answered"
            store = patiently(lambda _: _fresh(_store(world, timeout_s), world, timeout_s), timeout_s + 5, silent)
            gpu = gpu_identity(device.index) if device.type == "cuda" else ""
            _check_devices(store, world, (socket.gethostname(), backend, gpu, backend == "nccl" and may_share_gpus()))
            cure = "NCCL connected the ranks, and no more than the network was there yet: who else uses it?"
            with explain_out_of_memory(device, lambda: [cure]):
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
                    store=store,
                    rank=world.rank,
                    world_size=world.size,
                    timeout=timedelta(seconds=timeout_s),
                    device_id=device if backend == "nccl" else None,
                )
        watch_group(dist.group.WORLD)
        return store
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise LauncherError(
                f"MASTER_PORT = {port} on {host} is in use by another program, {where} cannot listen: export another"
            ) from error
        raise RendezvousError(
            f"{where} could not meet the others at MASTER_ADDR = {host}, MASTER_PORT = {port} within {timeout_s:g} s "
            f"(train.timeout): {first_line(error)}"
        ) from error


def _check_devices(store: Any, world: World, own: tuple[str, Backend, str, bool]) -> None:
    """Raise on all ranks alike if they cannot exchange over what each has chosen: before a group, which would hang.

    `own` is this rank's host, backend, GPU ("" for none), and whether its NCCL may share a GPU.
    """
    store.set(f"device/{world.rank}", json.dumps(own))
    came = map(json.loads, store.multi_get([f"device/{rank}" for rank in range(world.size)]))
    hosts, backends, gpus, may_share = zip(*came, strict=True)
    store.set(f"device/read/{world.rank}", "")
    if world.is_main:  # it may hold the store, which has to be there until all have read
        store.wait([f"device/read/{rank}" for rank in range(world.size)])
    if len({*backends}) > 1:
        without = [f"rank {rank} on {hosts[rank]}" for rank, backend in enumerate(backends) if backend != "nccl"]
        raise InputError(
            f"train.device: {len(without)} of {world.size} ranks see no GPU: {', '.join(without[:8])}"
            f"{' and others' * (len(without) > 8)}; look at its driver (nvidia-smi) and CUDA_VISIBLE_DEVICES there, or "
            "set train.device cpu for all"
        )
    if backends[0] == "nccl" and not all(may_share) and (problem := shared_gpus(gpus)):
        raise InputError(problem)


def shared_gpus(gpus: Sequence[str]) -> str:
    """What is wrong with the ranks' GPUs, given by rank: empty if each has its own."""
    ranks: dict[str, list[int]] = {}
    for rank, gpu in enumerate(gpus):
        ranks.setdefault(gpu, []).append(rank)
    shared = [
        f"ranks {', '.join(map(str, those))} have the same GPU, {gpu}" for gpu, those in ranks.items() if len(those) > 1
    ]
    cure = (
        "start one rank a GPU (with Slurm one task a GPU: --ntasks-per-node equal to --gpus-per-node), look whether "
        "CUDA_VISIBLE_DEVICES is the same for all, or set train.backend gloo, over which ranks may share one"
    )
    return f"train.device: {'; '.join(shared)}: {cure}" if shared else ""


def _fresh(store: Any, world: World, timeout_s: float) -> Any:
    """A part of the store for this group of ranks alone, once all of them are there.

    A restarted group finds the words of the one before it in the store of torchrun's agent
    (https://github.com/pytorch/pytorch/issues/135712): rank 0 answers whatever each rank has last said, until each
    living one has heard the name of this group.
    """
    name = uuid4().hex
    if not world.is_main:
        store.set(f"distcnn/here/{world.rank}", name)
        name = store.get(f"distcnn/to/{name}").decode()  # raises when nobody has answered in time
        store.set(f"distcnn/{name}/{world.rank}", "")
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    missing, answered = set(range(1, world.size)), set()
    deadline = time.monotonic() + timeout_s
    while True:
        for rank in [rank for rank in missing if store.check([f"distcnn/here/{rank}"])]:
            word = store.get(f"distcnn/here/{rank}").decode()
            if word not in answered:
                store.set(f"distcnn/to/{word}", name)
                answered.add(word)
        missing = {rank for rank in missing if not store.check([f"distcnn/{name}/{rank}"])}
        if not missing:
            return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            raise TimeoutError(f"missing: rank {', '.join(map(str, sorted(missing)))}")
        time.sleep(0.02)


def _store(world: World, timeout_s: float) -> Any:
    """The store of torchrun's agent; else one that rank 0 opens, at the given port or at one that the ranks agree on.

    Then it is at the first free port of a sequence that the job's name begins, and the others look through the same
    sequence for the store that bears the job's name: two jobs on one node, even with the same first port, never meet
    in one store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))[0]
    ports = range(world.master_port, world.master_port + (_PORTS if world.job else 1))
    key = f"distcnn/{world.job or 'rank 0'}"
    if world.is_main:
        store = _serve(world, ports, timeout_s)
        store.set(key, "here")
        return store
    deadline, patience_s = time.monotonic() + timeout_s, 2.0
    while time.monotonic() < deadline:
        for port in ports:
            for host in world.master_addrs:
                if found := _store_at(host, port, key, patience_s):
                    found.set_timeout(timedelta(seconds=timeout_s))
                    return found
        time.sleep(0.2)
        patience_s *= 1.5  # rank 0's node may be slow
    where = f"{', '.join(world.master_addrs)}, ports {ports[0]} to {ports[-1]}"
    raise TimeoutError(f"no rank 0 of {world.job or 'this job'} at {where}")


def _serve(world: World, ports: range, timeout_s: float) -> Any:
    listener = _listen(world, ports)
    host, port = listener.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world.size, True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def _listen(world: World, ports: range) -> socket.socket:
    """A socket at the first free port, on the address that the others will try, if it is one of this node's."""
    for port in ports:
        for host in (*world.master_addrs, ""):
            try:
                address = socket.gethostbyname(host) if host else ""
                if address.startswith("127.") and world.nodes > 1:
                    address = ""  # a host's own name, on Debian 127.0.1.1: the other nodes see another address
                return socket.create_server((address, port), backlog=2048)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    break  # the next port
    raise OSError(errno.EADDRINUSE, f"address already in use: ports {ports[0]} to {ports[-1]}")


def _store_at(host: str, port: int, key: str, patience_s: float) -> Any:
    """The store that listens there and holds the key; None if there is none, or somebody who does not answer.

    That can be this very process: a connection to a port of the kernel's own range, before rank 0 listens there, may
    be given that port at its own end, and is then connected to itself.
    """

    def look() -> Any:
        socket.create_connection((host, port), timeout=2).close()  # refused at once where nobody listens
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=patience_s)
        )
        return store if store.check([key]) else None

    try:
        return patiently(lambda _: look(), patience_s)
    except (OSError, dist.DistError, RuntimeError):  # of them a TimeoutError: somebody who never answers
        return None


def network_interface(world: World) -> str | None:
    """The interface on the way to rank 0, for gloo: by itself it takes the one that the host's name resolves to.

    On Debian a host's own name is 127.0.1.1, which no other node can reach. None if it cannot be told.
    """
    loopback: str | None = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if world.local_size == world.size:
        return loopback
    addresses: dict[str, str] = {
        a.address: name for name, known in psutil.net_if_addrs().items() if name != loopback for a in known
    }
    # Rank 0's own name may lead it to the loopback interface: then the one of the default route (192.0.2.1 is an
    # address of RFC 5737, nobody's), else the first that is up.
    for host in (world.master_addrs[0], "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 9))  # sends nothing: it only picks the route
            except OSError:
                continue
            if name := addresses.get(probe.getsockname()[0]):
                return name
    return next((name for name in up_interfaces() if name in addresses.values()), None)


def up_interfaces() -> list[str]:
    """The network interfaces in use, but the loopback one."""
    return [name for name, state in psutil.net_if_stats().items() if state.isup and not name.startswith("lo")]


def describe_network(world: World) -> str:
    """One line for the start of a run: where the ranks meet, over which interface, and what could be chosen."""
    if world.size == 1:
        return "none"
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or network_interface(world) or "the default interface"
    line = f"{plural(world.nodes, 'node')}, over {interface}"
    if world.nodes == 1:
        return line
    up = up_interfaces()
    if len(up) > 1:
        line += (
            f"; others are {', '.join(sorted(set(up) - {interface}))}: choose by GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        )
    return line
