"""torchrun on two hosts, which are network namespaces with names, addresses and /etc/hosts files of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TIMEOUT, clean_environment, metrics, require, run_torchrun

NET = "10.78.0"
PORT = 29555
FIXED = ["--train.threads", "1"]


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two hosts on a bridge. As Debian sets it up, the name of a host is 127.0.1.1 to itself, which others cannot reach."""
    require("ip", "unshare", root=True)
    bridge, names = "distcnn0", ["distcnn-host1", "distcnn-host2"]

    def remove():
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


def start(host, *arguments, **environment):
    inside = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
    return subprocess.Popen([*inside, *map(str, arguments)], env=clean_environment() | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def outcomes(processes):
    try:
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [p.returncode for p in processes], "".join(o for o, _ in outputs), "".join(e for _, e in outputs)


def losses(folder):
    return [(line["step"], line["loss"]) for line in metrics(folder)]


def test_two_hosts_give_the_bits_of_one(hosts, synthetic, tmp_path):
    assert run_torchrun(["train", synthetic, *FIXED, "--name", "one"], 2).codes == [0]
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    meeting = ["-N", 2, "-n", 1, "-m", f"{NET}.1:{PORT}"]
    codes, out, err = outcomes(
        [start(host, script, *meeting, synthetic, *FIXED, "--name", "two", PATH=path) for host in hosts]
    )
    assert codes == [0, 0], err
    assert "torchrun, 2 nodes, over eth0; others are eth1: choose by GLOO_SOCKET_IFNAME" in out
    assert losses(tmp_path / "runs" / "two") == losses(tmp_path / "runs" / "one")


def test_bare_ranks_on_two_hosts_meet_by_the_address_alone(hosts, synthetic, tmp_path):
    """No launcher: MASTER_ADDR is rank 0's name, which to itself is a loopback address."""
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(PORT)}
    command = [sys.executable, "-m", "distcnn", "train", synthetic, *FIXED, "--name", "bare"]
    codes, _, err = outcomes(
        [start(host, *command, **common, RANK=str(i), MASTER_ADDR=f"{NET}.1") for i, host in enumerate(hosts)]
    )
    assert codes == [0, 0], err
    assert len(metrics(tmp_path / "runs" / "bare", "train")) == 6
