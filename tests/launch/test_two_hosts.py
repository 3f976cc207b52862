"""torchrun on two hosts, which are network namespaces with names, addresses and /etc/hosts files of their own."""

import os
import sys
from pathlib import Path

from tests.hosts import NET, on, run_on_hosts
from tests.ranks import Ranks, clean_environment, run_torchrun
from tests.records import losses, metrics

PORT = 29555
FIXED = ["--train.threads", "1"]


def test_two_hosts_give_the_bits_of_one(hosts, synthetic, tmp_path):
    assert run_torchrun(["train", synthetic, *FIXED, "--name", "one"], 2).codes == [0]
    script = Path(__file__).parents[2] / "launch" / "torchrun.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    meeting = ["-N", 2, "-n", 1, "-m", f"{NET}.1:{PORT}"]
    command = [script, *meeting, synthetic, *FIXED, "--name", "two"]
    with Ranks([([*on(host), *command], clean_environment() | {"PATH": path}) for host in hosts]) as agents:
        outcome = agents.outcome()
    assert outcome.codes == [0, 0], outcome.err
    assert "torchrun, 2 nodes, over eth0; others: eth1 (set GLOO_SOCKET_IFNAME" in outcome.out
    assert losses(tmp_path / "runs" / "two") == losses(tmp_path / "runs" / "one")


def test_bare_ranks_on_two_hosts_meet_by_the_address_alone(hosts, synthetic, tmp_path):
    """No launcher: MASTER_ADDR is rank 0's name, which to itself is a loopback address."""
    outcome = run_on_hosts(hosts, ["train", synthetic, *FIXED, "--name", "bare"])
    assert outcome.codes == [0, 0], outcome.err
    assert len(metrics(tmp_path / "runs" / "bare", "train")) == 6
