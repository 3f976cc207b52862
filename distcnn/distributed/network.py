"""The network interface between the ranks."""

import os
import socket

import psutil

from distcnn.distributed.world import World
from distcnn.text import plural

_NOT_ROUTED = "192.0.2.1"  # reserved by RFC 5737, so routed by the default route


def network_interface(world: World) -> str | None:
    """Return the interface on the route to rank 0, for gloo; None if unknown.

    By default gloo takes the one that the host's name resolves to: on Debian 127.0.1.1, which other nodes cannot reach.
    """
    loopback: str | None = next((name for name in psutil.net_if_addrs() if name.startswith("lo")), None)
    if world.local_size == world.size:
        return loopback
    addresses: dict[str, str] = {
        a.address: name for name, known in psutil.net_if_addrs().items() if name != loopback for a in known
    }
    # On rank 0 its own name may resolve to the loopback interface: fall back to the default route, then any in use.
    for host in (world.master_addrs[0], _NOT_ROUTED):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 9))  # sends nothing: only selects the route
            except OSError:
                continue
            if name := addresses.get(probe.getsockname()[0]):
                return name
    return next((name for name in up_interfaces() if name in addresses.values()), None)


def up_interfaces() -> list[str]:
    """Return the network interfaces that are up, except loopback."""
    return [name for name, state in psutil.net_if_stats().items() if state.isup and not name.startswith("lo")]


def describe_network(world: World) -> str:
    """Describe the number of nodes, the interface, and the alternatives, for the start of a run."""
    if world.size == 1:
        return "none"
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or network_interface(world) or "the default interface"
    line = f"{plural(world.nodes, 'node')}, over {interface}"
    up = up_interfaces()
    if world.nodes == 1 or len(up) < 2:
        return line
    others = ", ".join(sorted(set(up) - {interface}))
    return f"{line}; others: {others} (set GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
