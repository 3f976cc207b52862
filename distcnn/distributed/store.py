"""The key-value store of the rendezvous: its address and port, and the keys of one group of ranks."""

import errno
import os
import socket
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from distcnn.distributed.timeout import call_with_timeout
from distcnn.distributed.world import World

_PORTS = 64  # tried in order from world.master_port on, unless the port is given


def connect(world: World, timeout_s: float) -> Any:
    """Return the store of torchrun's agent, else one that rank 0 opens and the others find.

    It is at the given port or, if the job has a name, at the first free port of a sequence that begins at
    `world.master_port`: the others search the same sequence for the store that holds the job's name. Two jobs on one
    node never share a store, even with the same first port.

    Raises OSError with EADDRINUSE on rank 0 if no port is free, and TimeoutError on the others if they do not find it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))[0]
    ports = range(world.master_port, world.master_port + (_PORTS if world.job else 1))
    key = f"distcnn/{world.job or 'rank 0'}"
    if world.is_main:
        store = _serve(world, ports, timeout_s)
        store.set(key, "here")
        return store
    deadline, try_s = time.monotonic() + timeout_s, 2.0
    while time.monotonic() < deadline:
        for port in ports:
            for host in world.master_addrs:
                if found := _store_at(host, port, key, try_s):
                    found.set_timeout(timedelta(seconds=timeout_s))
                    return found
        time.sleep(0.2)
        try_s *= 1.5  # rank 0's node may be slow
    where = f"{', '.join(world.master_addrs)}, ports {ports[0]} to {ports[-1]}"
    raise TimeoutError(f"no rank 0 of {world.job or 'this job'} at {where}")


def group_store(store: Any, world: World, timeout_s: float) -> Any:
    """Return a PrefixStore with keys of this group of ranks only, once all of them have joined.

    A restarted group finds its predecessor's keys in the store of torchrun's agent
    (https://github.com/pytorch/pytorch/issues/135712). So each rank posts a nonce, and rank 0 answers each rank's
    newest nonce with the group's name until every live rank has acknowledged it.

    Raises TimeoutError on rank 0, with the missing ranks, and torch's DistStoreError on the others.
    """
    group = uuid4().hex
    if not world.is_main:
        nonce = group
        store.set(f"distcnn/here/{world.rank}", nonce)
        group = store.get(f"distcnn/to/{nonce}").decode()
        store.set(f"distcnn/{group}/{world.rank}", "")
        return dist.PrefixStore(group, store)  # type: ignore[attr-defined]
    missing, answered = set(range(1, world.size)), set()
    deadline = time.monotonic() + timeout_s
    while True:
        for rank in [rank for rank in missing if store.check([f"distcnn/here/{rank}"])]:
            nonce = store.get(f"distcnn/here/{rank}").decode()
            if nonce not in answered:
                store.set(f"distcnn/to/{nonce}", group)
                answered.add(nonce)
        missing = {rank for rank in missing if not store.check([f"distcnn/{group}/{rank}"])}
        if not missing:
            return dist.PrefixStore(group, store)  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            raise TimeoutError(f"missing: rank {', '.join(map(str, sorted(missing)))}")
        time.sleep(0.02)


def _serve(world: World, ports: range, timeout_s: float) -> Any:
    """Open the store, on rank 0."""
    listener = _listen(world, ports)
    host, port = listener.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world.size, True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def _listen(world: World, ports: range) -> socket.socket:
    """Return a socket at the first free port, on the address that the others try if it is this node's, else on all."""
    for port in ports:
        for host in (*world.master_addrs, ""):
            try:
                address = socket.gethostbyname(host) if host else ""
                if address.startswith("127.") and world.nodes > 1:
                    address = ""  # a host's own name resolves to 127.0.1.1 on Debian: other nodes see another address
                return socket.create_server((address, port), backlog=2048)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    break  # the next port
    raise OSError(errno.EADDRINUSE, f"address already in use: ports {ports[0]} to {ports[-1]}")


def _store_at(host: str, port: int, key: str, timeout_s: float) -> Any:
    """Return the store at that address if it holds the key; None if there is none, or no answer within `timeout_s`.

    The connection can be to itself: before rank 0 listens at a port of the kernel's ephemeral range, a client may be
    assigned that very port.
    """

    def connect_once() -> Any:
        socket.create_connection((host, port), timeout=2).close()  # refused at once if nothing listens
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        return store if store.check([key]) else None

    try:
        return call_with_timeout(lambda _: connect_once(), timeout_s)
    except (OSError, dist.DistError, RuntimeError):  # OSError includes TimeoutError: another program that never answers
        return None
