"""launch/torchrun.sh as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import TIMEOUT, clean_environment, metrics

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"


def script(*arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [SCRIPT, *map(str, arguments)]
    environment = clean_environment() | {"PATH": path}
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=TIMEOUT)


def test_two_ranks_on_one_node(synthetic, tmp_path):
    done = script("-n", 2, synthetic, "--train.duration", "2step")
    assert done.returncode == 0, done.stderr
    assert "20 per rank × 2 ranks × 6 accumulated = 240" in done.stdout
    assert len(metrics(tmp_path / "runs" / "tiny", "train")) == 2


def test_wrong_use_is_explained():
    assert script("--help").returncode == 0
    assert script("-h").stdout.startswith("usage: launch/torchrun.sh")
    assert script().returncode == 2
    done = script("-N", 2, "x.yaml")
    assert done.returncode == 2
    assert "needs -m HOST:PORT" in done.stderr
