"""Two hosts on one machine: network namespaces with names, addresses and /etc/hosts files of their own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import require
from tests.ranks import Outcome, Ranks, Words, bare, clean_environment

NET = "10.78.0"


def ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Two hosts on a bridge. As Debian sets it up, the name of a host is 127.0.1.1 to itself, which others cannot reach."""
    require("ip", "unshare", root=True)
    bridge, names = "distcnn0", ["distcnn-host1", "distcnn-host2"]

    def remove() -> None:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            for file in Path("/etc/netns", name).glob("*"):
                file.unlink()
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)

    remove()
    ip("link", "add", bridge, "type", "bridge")
    ip("link", "set", bridge, "up")
    for i, name in enumerate(names, start=1):
        ip("netns", "add", name)
        for link in ("eth0", "eth1"):  # eth1 leads nowhere
            ip("link", "add", f"dc{i}{link}", "type", "veth", "peer", "name", link, "netns", name)
            ip("-n", name, "link", "set", link, "up")
            ip("link", "set", f"dc{i}{link}", "up")
        ip("link", "set", f"dc{i}eth0", "master", bridge)
        ip("-n", name, "addr", "add", f"{NET}.{i}/24", "dev", "eth0")
        ip("-n", name, "addr", "add", f"10.79.{i}.1/24", "dev", "eth1")
        ip("-n", name, "link", "set", "lo", "up")
        others = "".join(f"{NET}.{j} {other}\n" for j, other in enumerate(names, start=1) if other != name)
        Path("/etc/netns", name).mkdir(parents=True, exist_ok=True)  # `ip netns exec` lays it over /etc
        Path("/etc/netns", name, "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}")
    try:
        yield names
    finally:
        remove()


def on(host: str) -> list[str]:
    """Before a command: run it on that host, under the host's name."""
    return ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]


def run_on_hosts(hosts: list[str], arguments: Words) -> Outcome:
    """One bare rank of distcnn on each host; the others know rank 0 by its address."""
    of_hosts = [
        one | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": f"{NET}.1"} for one in bare(len(hosts))
    ]
    python = [sys.executable, "-m", "distcnn", *arguments]
    commands = [([*on(host), *python], clean_environment() | own) for host, own in zip(hosts, of_hosts, strict=True)]
    with Ranks(commands) as ranks:
        return ranks.outcome()
