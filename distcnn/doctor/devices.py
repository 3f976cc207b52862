"""The GPUs of one rank: those visible, and whether the one that it would train on works."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from distcnn.distributed.cores import cores
from distcnn.distributed.device import gpu_identity, gpu_index, may_share_gpus, nccl_version
from distcnn.distributed.world import World
from distcnn.doctor.findings import Finding, fail, ok, warn
from distcnn.doctor.situation import Situation
from distcnn.errors import first_line
from distcnn.text import plural


def devices(situation: Situation) -> Iterator[Finding]:
    """Report what this rank sees. Whether its GPU is its own is checked later, by `gpus_of_ranks`."""
    cpu, driver = f"{cores()} cores", _driver_version()
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
            fix = "install a PyTorch built for this driver's CUDA (nvidia-smi shows it), or set CUDA_VISIBLE_DEVICES"
            text = f"{cpu}; a GPU driver is installed{driver}, but PyTorch (CUDA {torch.version.cuda}) sees no GPU"
            yield fail("devices", text, fix)
        else:
            yield ok("devices", f"{cpu}, no GPU; gloo")
        return
    count, ranks = torch.cuda.device_count(), situation.world.local_size
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    nccl = ".".join(map(str, nccl_version() or ("none",)))
    text = f"{cpu}; {plural(count, 'GPU')}: {names}; CUDA {torch.version.cuda}, NCCL {nccl}{driver}"
    if ranks < count:
        fix = f"start one rank per GPU: --nproc_per_node={count}, --ntasks-per-node={count}"
        yield warn("devices", f"{text}; {ranks} in use", fix)
    else:
        yield ok("devices", text)


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return f", driver {found[0]}" if found else ""


@dataclass(frozen=True)
class Gpu:
    """The GPU that one rank would train on."""

    host: str
    index: int = 0
    identity: str = ""  # globally unique; empty without a usable GPU
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    shared: bool = False  # whether this rank's NCCL lets ranks share it
    problem: str = ""  # the error of a visible GPU that does not work


def own_gpu(world: World, host: str) -> Gpu:
    """Make this rank's GPU the current one, run a kernel on it, and return it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return Gpu(host, visible=visible)
    index = gpu_index(world)
    try:
        torch.cuda.set_device(index)
        torch.ones(1, device="cuda").add_(1).item()
        shared = dist.is_nccl_available() and may_share_gpus()
        return Gpu(host, index, gpu_identity(index), visible, shared)
    except RuntimeError as error:
        return Gpu(host, index, visible=visible, problem=first_line(error))


def usable(gpu: Gpu) -> Iterator[Finding]:
    """Report a visible GPU that does not work."""
    if gpu.problem:
        fix = "check nvidia-smi: another process may use it exclusively, or this PyTorch build does not support it"
        yield fail("devices", f"GPU {gpu.index} cannot be used: {gpu.problem}", f"{fix}; or exclude it")
