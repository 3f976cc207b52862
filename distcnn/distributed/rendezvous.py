"""The rendezvous of the ranks, and their process group."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: see process_group

from distcnn.distributed.device import Backend
from distcnn.distributed.device_check import check_devices, rank_device
from distcnn.distributed.memory import explain_out_of_memory
from distcnn.distributed.network import network_interface
from distcnn.distributed.shutdown import watch_group
from distcnn.distributed.store import connect, group_store
from distcnn.distributed.timeout import call_with_timeout
from distcnn.distributed.world import World
from distcnn.errors import LauncherError, RendezvousError, first_line
from distcnn.files import waiting


@contextmanager
def process_group(world: World, *, device: torch.device, backend: Backend = "gloo", timeout_s: float) -> Iterator[Any]:
    """Create the process group and yield its store, None at world size 1. Called by all ranks.

    With NCCL, CPU tensors and Python objects go over gloo: it does not wait for the GPU, and raises when a rank has
    died, where NCCL would wait. The backend "gloo" carries both.

    On CUDA set the current device first, so that no rank opens a context on GPU 0. After an exception the group is not
    destroyed: other ranks may be in a collective, and destroying would wait for them.

    torch.distributed.nn is imported before there is a group, as its functions hold the group of the time of import as
    their default argument forever (otherwise the first DistributedDataParallel imports it).

    Raises RendezvousError if the ranks cannot reach each other within `timeout_s`, LauncherError if another program
    uses the port, and InputError on all ranks if their devices do not match (see check_devices).
    """
    if world.size == 1:
        yield None
        return
    with torch_variables(world):
        yield _rendezvous(world, device, backend, timeout_s)
    dist.destroy_process_group()


@contextmanager
def torch_variables(world: World) -> Iterator[None]:
    """Set torchrun's variables under any launcher, for libraries that read them (Accelerate), and gloo's interface.

    Keeps variables that are already set. On exit torchrun's are restored; the interface stays.
    """
    own = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
        "MASTER_ADDR": world.master_addrs[0],
        "MASTER_PORT": world.master_port,
    }
    added = {name: str(value) for name, value in own.items() if name not in os.environ}
    if interface := network_interface(world):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _rendezvous(world: World, device: torch.device, backend: Backend, timeout_s: float) -> Any:
    """Find the other ranks, check their devices, and initialize torch's default group; return its store."""
    host, port = world.master_addrs[0], world.master_port
    where = f"rank {world.rank} of {world.size} on {socket.gethostname()}"
    try:
        with waiting(f"the other {world.size - 1} ranks at {host}:{port}"):
            # PyTorch's store would wait forever for another program at the port that never answers.
            silent = "what listens there, perhaps another program, has not answered"
            store = call_with_timeout(
                lambda _: group_store(connect(world, timeout_s), world, timeout_s), timeout_s + 5, silent
            )
            check_devices(store, world, rank_device(device, backend))
            _initialize(world, store, device, backend, timeout_s)
        return store
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise LauncherError(
                f"MASTER_PORT = {port} on {host} is in use by another program, {where} cannot listen: export another"
            ) from error
        raise RendezvousError(
            f"{where} could not reach the others at MASTER_ADDR = {host}, MASTER_PORT = {port} within {timeout_s:g} s "
            f"(train.timeout): {first_line(error)}"
        ) from error


def _initialize(world: World, store: Any, device: torch.device, backend: Backend, timeout_s: float) -> None:
    if backend == "nccl":  # its flight recorder: each rank's last collectives, dumped on a timeout
        os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    fix = "NCCL was connecting the ranks, with only model and optimizer on the device: which other processes use it?"
    with explain_out_of_memory(device, lambda: [fix]):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if backend == "nccl" else None,
        )
    watch_group(dist.group.WORLD)
