"""What the doctor looks at on one rank alone: each check yields findings, also for what is well."""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil
import torch

from distcnn.distributed.cores import cores
from distcnn.distributed.device import nccl_version
from distcnn.distributed.world import World
from distcnn.runs.environment import versions
from distcnn.text import plural

Health = Literal["ok", "warn", "fail"]
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    health: Health
    found: str
    fix: str = ""


def look(world: World, environment: Mapping[str, str], output_dir: Path, cache_dir: Path) -> Iterator[Finding]:
    """All of them."""
    yield from _versions()
    yield from _devices(world)
    yield from _launch(world, environment)
    yield from _threads(world, environment)
    yield from _memory(world)
    yield from _limits()
    yield from _shared_memory()
    yield from _disk("output_dir", output_dir, needed=1 * GB)
    yield from _disk("cache", cache_dir, needed=1 * GB)
    yield from _wandb(environment)


def _versions() -> Iterator[Finding]:
    found = versions()
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    vision, own = found.get("torchvision", "0.0"), found.get("torch", "0.0")
    # They are released in pairs: torch 2.y belongs to torchvision 0.(y + 15).
    expected = f"0.{int(own.split('.')[1]) + 15}" if own.startswith("2.") else None
    if expected and not vision.startswith(f"{expected}."):
        yield Finding(
            "versions", "fail", text, f"pip install 'torchvision=={expected}.*': the one built for torch {own}"
        )
        return
    yield Finding("versions", "ok", text)


def _devices(world: World) -> Iterator[Finding]:
    """Whether they can be used, and are this rank's alone, is seen when the ranks have met: doctor_gpus."""
    cpu, driver = f"{cores()} cores", _driver_version()
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
            cure = "install a PyTorch built for this driver's CUDA (nvidia-smi shows it), or set CUDA_VISIBLE_DEVICES"
            text = f"{cpu}; a GPU's driver is there{driver}, but PyTorch (CUDA {torch.version.cuda}) sees no GPU"
            yield Finding("devices", "fail", text, cure)
        else:
            yield Finding("devices", "ok", f"{cpu}, no GPU; gloo")
        return
    count, ranks = torch.cuda.device_count(), world.local_size
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    nccl = ".".join(map(str, nccl_version() or ("none",)))
    text = f"{cpu}; {plural(count, 'GPU')}: {names}; CUDA {torch.version.cuda}, NCCL {nccl}{driver}"
    if ranks < count:
        cure = f"start a rank for each: --nproc_per_node={count}, --ntasks-per-node={count}"
        yield Finding("devices", "warn", f"{text}; {ranks} in use", cure)
    else:
        yield Finding("devices", "ok", text)


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return f", driver {found[0]}" if found else ""


def _launch(world: World, environment: Mapping[str, str]) -> Iterator[Finding]:
    text = f"{world.launcher}: rank {world.rank} of {world.size}, node {world.node} of {world.nodes}"
    tasks = environment.get("SLURM_NTASKS", "1")
    if world.launcher == "single" and tasks.isdecimal() and int(tasks) > 1:
        yield Finding("launcher", "warn", f"{text}; the Slurm job has {tasks} tasks", "start distcnn with srun")
        return
    yield Finding("launcher", "ok", text)


def _threads(world: World, environment: Mapping[str, str]) -> Iterator[Finding]:
    here, ranks = cores(), world.local_size
    asked = environment.get("SLURM_CPUS_PER_TASK", "")
    if ranks > here:
        cure = "start fewer ranks, or let them use more cores: srun --cpus-per-task, taskset, mpirun --bind-to none"
        yield Finding("cores", "warn", f"{ranks} ranks on this node may use {here} cores", cure)
    elif asked.isdecimal() and world.launcher == "srun" and int(asked) > here:
        cure = "srun --cpus-per-task, or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK: srun does not inherit it"
        yield Finding("cores", "warn", f"SLURM_CPUS_PER_TASK = {asked}, but {here} cores may be used", cure)
    else:
        yield Finding("cores", "ok", f"{here} cores, {ranks} ranks on this node")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = environment.get(name, "")
        if value.isdecimal() and int(value) * ranks > max(here, ranks):
            text = f"{name} = {value}, {ranks} ranks, {here} cores: the threads get into each other's way"
            yield Finding("threads", "warn", text, f"unset {name}; train.threads is cores / ranks by itself")


def _memory(world: World) -> Iterator[Finding]:
    free = _available_memory() / world.local_size
    text = f"{free / GB:.1f} GB available for each rank"
    if free < 1 * GB:
        yield Finding("memory", "warn", text, "start fewer ranks on this node, or ask for more: --mem, docker --memory")
    else:
        yield Finding("memory", "ok", text)


def _available_memory() -> float:
    """The machine's, or what a cgroup leaves of it."""
    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdecimal() else free


def _limits() -> Iterator[Finding]:
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 1024:
        cure = "ulimit -n 4096 before the start; permanently in /etc/security/limits.conf"
        yield Finding("ulimit -n", "warn", f"{files} open files: DataLoader workers and many ranks need more", cure)
    else:
        yield Finding("ulimit -n", "ok", f"{files} open files")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = Path("/sys/class/infiniband")
    if infiniband.is_dir() and any(infiniband.iterdir()) and locked != resource.RLIM_INFINITY and locked < 64 * MB:
        cure = "ulimit -l unlimited: NCCL over InfiniBand locks its buffers"
        yield Finding("ulimit -l", "warn", f"{locked} bytes of locked memory", cure)


def _shared_memory() -> Iterator[Finding]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    usage = shutil.disk_usage(path)
    text = f"{usage.free / MB:,.0f} MB free of {usage.total / MB:,.0f}"
    if usage.free < 256 * MB:
        cure = "docker run --shm-size=2g, or remove what other jobs have left in /dev/shm; else data.workers: 0"
        yield Finding("/dev/shm", "warn", text, cure)
    else:
        yield Finding("/dev/shm", "ok", text)


def _disk(what: str, folder: Path, needed: float) -> Iterator[Finding]:
    """Room, permission and speed where a folder lies or would be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    key = {"output_dir": "--output_dir", "cache": "$DISTCNN_CACHE"}[what]
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    if not os.access(there, os.W_OK | os.X_OK) or status.f_flag & os.ST_RDONLY:
        yield Finding(what, "fail", f"{there} cannot be written", f"give another folder by {key}")
        return
    if status.f_files and status.f_favail < 100:
        yield Finding(what, "fail", f"{there}: only {status.f_favail} more files fit", f"remove some, or give {key}")
        return
    size = int(min(16 * MB, free / 4))
    if free < needed / 20:
        yield Finding(what, "fail", f"{there}: {free / MB:,.0f} MB free", f"make room, or give another folder by {key}")
        return
    try:
        speed = _write_speed(there, size)
    except OSError as error:
        yield Finding(what, "fail", f"{there}: {error.strerror}", f"make room, or give another folder by {key}")
        return
    text = f"{there}: {free / GB:,.1f} GB free, writes {speed / MB:,.0f} MB/s to the disk"
    if free < needed:
        yield Finding(what, "warn", text, f"make room, or give another folder by {key}")
    elif speed < 10 * MB:
        yield Finding(what, "warn", text, f"give a folder on a faster disk by {key}; fewer saves: checkpoint.every")
    else:
        yield Finding(what, "ok", text)


def _write_speed(folder: Path, size: int) -> float:
    """Bytes a second of a file that is synced to the disk, and removed."""
    path = folder / f".distcnn-doctor-{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(1 << 20)
    try:
        started = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(max(1, size // len(content))):
                if file.write(content) != len(content):
                    raise OSError(28, "No space left on device")
            os.fsync(file.fileno())
        return max(1, size // len(content)) * len(content) / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def _wandb(environment: Mapping[str, str]) -> Iterator[Finding]:
    from distcnn.tracking.wandb_backend import chosen_mode

    mode = chosen_mode("auto")
    if mode == "disabled":
        why = "not installed" if "wandb" not in versions() else f"WANDB_MODE = {environment.get('WANDB_MODE')}"
        yield Finding("wandb", "ok", f"disabled: {why}")
        return
    if mode == "offline":
        yield Finding("wandb", "ok", "offline: runs are written to the run's folder; `wandb sync` sends them")
        return
    address = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=5):
            yield Finding("wandb", "ok", f"online: {address.hostname} answers")
    except OSError as error:
        text = f"online, but {address.hostname}:{port} does not answer ({error.strerror or error})"
        yield Finding("wandb", "warn", text, "export WANDB_MODE=offline here, and `wandb sync` later from elsewhere")
