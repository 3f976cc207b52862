"""Helpers to run distcnn as a user does: real processes, an environment free of any launcher's variables."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI", "TORCHELASTIC", "ACCELERATE_", "WANDB_", "MASTER_", "OMP_")
LAUNCHER_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NO_COLOR",
    "FORCE_COLOR",
)
NET = "10.78.0"  # of the two hosts
TIMEOUT = 300  # seconds until a hang becomes a failure


@dataclass(frozen=True)
class Outcome:
    """Exit codes and output of all ranks."""

    codes: list[int]
    out: str
    err: str


def clean_environment() -> dict[str, str]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(LAUNCHER_PREFIXES) and key not in LAUNCHER_NAMES
    }
    return environment | {"PYTHONWARNINGS": "default", "COLUMNS": "200"}


def require(*programs: str, root: bool = False) -> None:
    """Skip where a real component is missing; in the CI, which sets DISTCNN_TEST_ALL, that is a failure."""
    missing = [f"{program} is not installed" for program in programs if shutil.which(program) is None]
    if root and os.geteuid() != 0:
        missing.append("needs root")
    if missing:
        (pytest.fail if os.environ.get("DISTCNN_TEST_ALL") else pytest.skip)("; ".join(missing))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_ranks(
    arguments: Sequence[str | Path],
    ranks: int = 1,
    cwd: Path | None = None,
    program: Sequence[str | Path] = ("-m", "distcnn"),
    **environment: str,
) -> Outcome:
    """`python -m distcnn …` as so many processes with the variables any launcher sets; one plain process for 1."""
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    shared = clean_environment() | environment
    if ranks > 1:
        shared |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=cwd, env=shared | own, text=True, stdout=pipe, stderr=pipe))
    return Outcome(*outcomes(processes))


def run_torchrun(arguments: Sequence[str | Path], ranks: int, cwd: Path | None = None, **environment: str) -> Outcome:
    """The same under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "distcnn", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment() | environment,
        text=True,
        capture_output=True,
        timeout=TIMEOUT,
    )
    return Outcome([done.returncode], done.stdout, done.stderr)


def metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def events(folder: Path) -> list[dict[str, Any]]:
    """What has happened between start and end."""
    return [line for line in metrics(folder, "event") if line["event"] not in ("started", "done", "failed")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: `--dist loadfile` gives each file to one worker, in this order."""
    items.sort(key=lambda item: item.path.stem != "test_slurm")


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A config that trains in seconds: few synthetic images with all augmentations, no W&B, runs beside it."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'runs'}\n"
        "data: {source: synthetic, synthetic_train: 500, synthetic_test: 101, image_size: 16, flip: true,\n"
        "       crop_padding: 2, cutout: 4}\n"
        "optim: {name: sgd, lr: 0.02}\n"
        "train: {duration: 2ep, batch_size: 240, micro_batch: 20}\n"
        "tracking: {wandb: disabled, report: false}\n"
    )
    return config


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


def start_on(host, *arguments, **environment):
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
