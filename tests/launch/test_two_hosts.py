"""torchrun on two hosts, which are network namespaces with names, addresses and /etc/hosts files of their own."""

import os
import sys
from pathlib import Path

from conftest import NET, metrics, outcomes, run_torchrun, start_on

PORT = 29555
FIXED = ["--train.threads", "1"]


def losses(folder):
    return [(line["step"], line["loss"]) for line in metrics(folder) if line["kind"] != "event"]


def test_two_hosts_give_the_bits_of_one(hosts, synthetic, tmp_path):
    assert run_torchrun(["train", synthetic, *FIXED, "--name", "one"], 2).codes == [0]
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    meeting = ["-N", 2, "-n", 1, "-m", f"{NET}.1:{PORT}"]
    codes, out, err = outcomes(
        [start_on(host, script, *meeting, synthetic, *FIXED, "--name", "two", PATH=path) for host in hosts]
    )
    assert codes == [0, 0], err
    assert "torchrun, 2 nodes, over eth0; others are eth1: choose by GLOO_SOCKET_IFNAME" in out
    assert losses(tmp_path / "runs" / "two") == losses(tmp_path / "runs" / "one")


def test_bare_ranks_on_two_hosts_meet_by_the_address_alone(hosts, synthetic, tmp_path):
    """No launcher: MASTER_ADDR is rank 0's name, which to itself is a loopback address."""
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(PORT)}
    command = [sys.executable, "-m", "distcnn", "train", synthetic, *FIXED, "--name", "bare"]
    codes, _, err = outcomes(
        [start_on(host, *command, **common, RANK=str(i), MASTER_ADDR=f"{NET}.1") for i, host in enumerate(hosts)]
    )
    assert codes == [0, 0], err
    assert len(metrics(tmp_path / "runs" / "bare", "train")) == 6
