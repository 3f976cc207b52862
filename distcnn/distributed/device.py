"""The device of this rank, its share of the cores, and what the ranks exchange over."""

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
_SHARED_BY_NCCL = (2, 30)  # from this version on two ranks may be on one GPU, where NCCL_MULTI_RANK_GPU_ENABLE is 1
_CUDA_BY_GLOO = (2, 11)  # before it, gloo forgot the stream of a CUDA tensor: pytorch/pytorch#170812


def gpu_index(world: World) -> int:
    """Which of the GPUs that this process sees is its own. Needs at least one.

    A launcher shows each rank all GPUs of the node, or its own alone (Slurm's --gpu-bind, --gpus-per-task, PBS, Flux,
    wrappers around mpirun): the local rank modulo their number is right in both cases. Whether two ranks have come to
    share one is seen at the rendezvous, by `gpu_identity`: no rank can know it by itself.
    """
    return world.local_rank % torch.cuda.device_count()


def gpu_identity(index: int) -> str:
    """A name of a visible GPU that no other one has, on any host: the host's and its UUID."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    entry = shown[index].strip() if index < len(shown) else ""
    # The instances of a GPU that is cut into parts may all bear the UUID of the whole.
    name = entry if entry.startswith("MIG-") else f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    return f"{name} on {socket.gethostname()}"


def nccl_version() -> tuple[int, int, int] | None:
    """That of the NCCL which is loaded, such as (2, 30, 7); None without one.

    torch.cuda.nccl.version() tells the one that PyTorch was built with, also where another is preloaded.
    """
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):  # no such library, or on another system
        return None
    return number.value // 10_000, number.value // 100 % 100, number.value % 100


def may_share_gpus() -> bool:
    """Whether NCCL lets several ranks use one GPU: its version can, and its own variable says so."""
    asked = os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"
    return asked and (nccl_version() or (0,))[:2] >= _SHARED_BY_NCCL


def backend_of(config: Config, device: torch.device) -> Backend:
    """What the ranks exchange over: `train.backend`, or where that is auto, what belongs to the device."""
    if config.train.backend == "auto":
        return "nccl" if device.type == "cuda" else "gloo"
    return config.train.backend


def whose(world: World) -> str:
    """The beginning of what is said of one rank's device; empty where there is one rank."""
    return f"rank {world.rank} on {socket.gethostname()}: " if world.size > 1 else ""


def host_has_gpus() -> bool:
    """Whether this host has the driver of NVIDIA's GPUs, on WSL too, whatever of them this process sees."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))


def own_device_problems(config: Config, world: World) -> Iterator[Problem]:
    """What this rank's device cannot do where the other ranks' may: on a host with GPUs each sees its own."""
    if host_has_gpus():
        yield from device_problems(config, world, whose(world))


def common_device_problems(config: Config, world: World) -> Iterator[Problem]:
    """The same on a host without GPUs, where all of its ranks have it, and one speaks for all."""
    if not host_has_gpus():
        yield from device_problems(config, world)


def device_problems(config: Config, world: World, own: str = "") -> Iterator[Problem]:
    """What this rank's device cannot do, its PyTorch's version included; `own` begins what is said of it."""
    wanted, backend, visible = config.train.device, config.train.backend, torch.cuda.is_available()
    if wanted == "cuda" and not visible:
        yield ("train.device",), f"{own}no CUDA device is visible; use auto or cpu"
    if wanted == "auto" and not visible:
        if config.train.precision == "fp16":
            yield ("train.precision",), f"{own}fp16 needs CUDA, and none is visible; on the CPU use bf16 or fp32"
        if config.model.sync_batchnorm:
            yield (
                ("model.sync_batchnorm",),
                f"{own}SyncBatchNorm needs CUDA, and none is visible; with train.micro_batch fixed, runs agree at "
                "every world size without it",
            )
        if backend == "nccl":
            yield ("train.backend",), f"{own}NCCL exchanges between GPUs, and none is visible; use auto or gloo"
    if wanted != "cpu" and visible and backend == "gloo" and world.size > 1 and torch_version() < _CUDA_BY_GLOO:
        yield (
            ("train.backend",),
            f"{own}gloo exchanges CUDA tensors rightly from PyTorch {'.'.join(map(str, _CUDA_BY_GLOO))} on, and this "
            f"is {torch.__version__}; use auto or nccl",
        )


def slow_precision(config: Config, device: torch.device) -> str:
    """What to say of a run that computes in the slowest way a GPU has, which is the default; empty for others."""
    if device.type != "cuda" or config.train.precision != "fp32" or config.train.tf32:
        return ""
    return (
        "fp32 without TF32 does not use the GPU's tensor cores, which are many times as fast: train.precision bf16, or "
        "train.tf32 where 10 bits of a product's factors are enough"
    )


def torch_version() -> tuple[int, int]:
    """(major, minor) of PyTorch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def set_up_device(config: Config, world: World) -> tuple[torch.device, int]:
    """This rank's device, made the current one, and its number of CPU threads.

    Call it before the process group exists: NCCL takes the current device. torchrun sets OMP_NUM_THREADS to 1;
    here every rank gets its share of the cores, or `train.threads`.
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
        # From PyTorch 2.9 on there is fp32_precision too, but the compiler of 2.9 to 2.11 refuses a mix of the two:
        # pytorch/pytorch#166387.
        warnings.filterwarnings("ignore", message=".*TF32", category=UserWarning)
        # Convolutions are in TF32 by PyTorch's default, products are not: here both say what the config says.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.tf32
    torch.backends.cudnn.deterministic = bool(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    return device, threads


_strict_before: tuple[bool, bool] | None = None  # what stood where an earlier training of this process made it strict


def _set_strict(strict: bool) -> None:
    """Have all of PyTorch deterministic, or leave it as the process had it before a training asked for that."""
    global _strict_before
    fill: Any = torch.utils.deterministic
    if strict:
        # Read where the first product makes cuBLAS's handle: in a process that has one already, too late.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _strict_before = _strict_before or (
            torch.are_deterministic_algorithms_enabled(),
            fill.fill_uninitialized_memory,
        )
        torch.use_deterministic_algorithms(True)
        # What is never read need not be filled, and no buffer of distcnn is read before it is written.
        fill.fill_uninitialized_memory = False
    elif _strict_before is not None:
        enabled, fill.fill_uninitialized_memory = _strict_before
        torch.use_deterministic_algorithms(enabled)
        _strict_before = None
