"""The device of this rank, its CPU threads, and the backend of the process group."""

import ctypes
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from distcnn.config.schema import Config
from distcnn.distributed.cores import cores
from distcnn.distributed.world import World
from distcnn.registry import Problem

Backend = Literal["nccl", "gloo"]
_SHARED_BY_NCCL = (2, 30)  # the first version that lets ranks share a GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1
_CUDA_BY_GLOO = (2, 11)  # before it, gloo ignored the stream of a CUDA tensor: pytorch/pytorch#170812


def gpu_index(world: World) -> int:
    """Return the index of this rank's GPU among those visible to the process. Needs at least one.

    A launcher shows each rank all GPUs of the node, or only its own (Slurm's --gpu-bind, --gpus-per-task, PBS, Flux,
    wrappers around mpirun): the local rank modulo their number is right in both cases. Whether two ranks share one is
    checked at the rendezvous, by `gpu_identity`: no rank can tell alone.
    """
    return world.local_rank % torch.cuda.device_count()


def gpu_identity(index: int) -> str:
    """Return a globally unique name of a visible GPU: its UUID and host."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    entry = shown[index].strip() if index < len(shown) else ""
    # MIG instances may all report the UUID of the physical GPU.
    name = entry if entry.startswith("MIG-") else f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    return f"{name} on {socket.gethostname()}"


def nccl_version() -> tuple[int, int, int] | None:
    """Return the version of the loaded NCCL, such as (2, 30, 7); None without one.

    torch.cuda.nccl.version() returns the one that PyTorch was built with, even if another is preloaded.
    """
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):  # no such library, or on another system
        return None
    return number.value // 10_000, number.value // 100 % 100, number.value % 100


def may_share_gpus() -> bool:
    """Whether NCCL lets ranks share a GPU: by its version and NCCL_MULTI_RANK_GPU_ENABLE."""
    asked = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"
    return asked and (nccl_version() or (0,))[:2] >= _SHARED_BY_NCCL


def backend_of(config: Config, device: torch.device) -> Backend:
    """Return the backend: `train.backend`, or for auto NCCL on CUDA and gloo on the CPU."""
    if config.train.backend == "auto":
        return "nccl" if device.type == "cuda" else "gloo"
    return config.train.backend


def rank_prefix(world: World) -> str:
    """Return the prefix of messages about one rank's device; empty for a single rank."""
    return f"rank {world.rank} on {socket.gethostname()}: " if world.size > 1 else ""


def host_has_gpus() -> bool:
    """Whether this host has NVIDIA's driver, natively or under WSL, even if no GPU is visible to this process."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))


def own_device_problems(config: Config, world: World) -> Iterator[Problem]:
    """Yield the problems of this rank's device on a host with GPUs, where the other ranks' may have none."""
    if host_has_gpus():
        yield from device_problems(config, world, rank_prefix(world))


def common_device_problems(config: Config, world: World) -> Iterator[Problem]:
    """Yield the problems of a host without GPUs, which are the same on all of its ranks."""
    if not host_has_gpus():
        yield from device_problems(config, world)


def device_problems(config: Config, world: World, prefix: str = "") -> Iterator[Problem]:
    """Yield what this rank's device or PyTorch version cannot do; each message begins with `prefix`."""
    wanted, backend, visible = config.train.device, config.train.backend, torch.cuda.is_available()
    if wanted == "cuda" and not visible:
        yield ("train.device",), f"{prefix}no CUDA device is visible; use auto or cpu"
    if wanted == "auto" and not visible:
        if config.train.precision == "fp16":
            yield ("train.precision",), f"{prefix}fp16 needs CUDA, and none is visible; on the CPU use bf16 or fp32"
        if config.model.sync_batchnorm:
            yield (
                ("model.sync_batchnorm",),
                f"{prefix}SyncBatchNorm needs CUDA, and none is visible; with train.micro_batch fixed, runs agree at "
                "every world size without it",
            )
        if backend == "nccl":
            yield ("train.backend",), f"{prefix}NCCL needs CUDA, and none is visible; use auto or gloo"
    if wanted != "cpu" and visible and backend == "gloo" and world.size > 1 and torch_version() < _CUDA_BY_GLOO:
        yield (
            ("train.backend",),
            f"{prefix}gloo needs PyTorch {'.'.join(map(str, _CUDA_BY_GLOO))} for correct results on CUDA tensors, and "
            f"this is {torch.__version__}; use auto or nccl",
        )


def slow_precision(config: Config, device: torch.device) -> str:
    """Advise against fp32 without TF32, the default, on a GPU; empty for faster settings."""
    if device.type != "cuda" or config.train.precision != "fp32" or config.train.tf32:
        return ""
    return (
        "fp32 without TF32 does not use the GPU's tensor cores, which are many times as fast: set train.precision bf16 "
        "or, if factors with 10 bits of mantissa are precise enough, train.tf32"
    )


def torch_version() -> tuple[int, int]:
    """Return PyTorch's (major, minor)."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def set_up_device(config: Config, world: World) -> tuple[torch.device, int]:
    """Set this rank's current device and number of CPU threads, and return both.

    Call it before the process group exists: NCCL takes the current device. torchrun sets OMP_NUM_THREADS to 1;
    here every rank gets an equal part of the node's cores, or `train.threads`.
    """
    threads = config.train.threads or max(1, cores() // world.local_size)
    torch.set_num_threads(threads)
    deterministic = config.train.deterministic
    _set_strict(deterministic == "strict")
    if config.train.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu"), threads
    device = torch.device("cuda", gpu_index(world))
    torch.cuda.set_device(device)
    with warnings.catch_warnings():
        # PyTorch 2.9 added fp32_precision, but the compiler of 2.9 to 2.11 rejects a mix of the two APIs:
        # pytorch/pytorch#166387.
        warnings.filterwarnings("ignore", message=".*TF32", category=UserWarning)
        # By default PyTorch uses TF32 for convolutions but not for matmuls: the config sets both.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.tf32
    torch.backends.cudnn.deterministic = bool(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    return device, threads


_strict_before: tuple[bool, bool] | None = None  # the settings before a training of this process made them strict


def _set_strict(strict: bool) -> None:
    """Make all of PyTorch deterministic, or restore what the process had before."""
    global _strict_before
    fill: Any = torch.utils.deterministic
    if strict:
        # Read when the first matmul creates cuBLAS's handle: no effect in a process that already has one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _strict_before = _strict_before or (
            torch.are_deterministic_algorithms_enabled(),
            fill.fill_uninitialized_memory,
        )
        torch.use_deterministic_algorithms(True)
        # No buffer of distcnn is read before it is written, so none needs filling.
        fill.fill_uninitialized_memory = False
    elif _strict_before is not None:
        enabled, fill.fill_uninitialized_memory = _strict_before
        torch.use_deterministic_algorithms(enabled)
        _strict_before = None
