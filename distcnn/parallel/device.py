"""The device of this rank, and its share of the cores."""

import os
from collections.abc import Iterator

import torch

from distcnn.config import Config
from distcnn.conflicts import Problem
from distcnn.parallel.world import World, cores


def device_problems(config: Config, world: World) -> Iterator[Problem]:
    """What the devices at hand cannot do."""
    wanted, found = config.train.device, torch.cuda.device_count()
    if wanted == "cuda" and not torch.cuda.is_available():
        yield ("train.device",), "no CUDA device is visible; use auto or cpu"
    elif wanted != "cpu" and torch.cuda.is_available() and (1 if world.own_gpu else world.local_size) > found:
        yield (
            ("train.device",),
            f"{world.local_size} ranks on this node see {found} GPU{'s' * (found > 1)} (CUDA_VISIBLE_DEVICES = "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}): start one rank a GPU",
        )
    if wanted == "auto" and not torch.cuda.is_available():
        if config.train.precision == "fp16":
            yield ("train.precision",), "fp16 needs CUDA, and none is visible; on the CPU use bf16 or fp32"
        if config.model.sync_batchnorm:
            yield (
                ("model.sync_batchnorm",),
                "SyncBatchNorm needs CUDA, and none is visible; with train.micro_batch fixed, runs agree at every "
                "world size without it",
            )


def set_up_device(config: Config, world: World) -> tuple[torch.device, int]:
    """This rank's device, made the current one, and its number of CPU threads.

    Call it before the process group exists: NCCL takes the current device. torchrun sets OMP_NUM_THREADS to 1;
    here every rank gets its share of the cores, or `train.threads`.
    """
    threads = config.train.threads or max(1, cores() // world.local_size)
    torch.set_num_threads(threads)
    if config.train.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu"), threads
    device = torch.device("cuda", world.gpu)
    torch.cuda.set_device(device)
    # Convolutions are in TF32 by PyTorch's default, products are not: here both say what the config says.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.tf32
    torch.backends.cudnn.deterministic = config.train.deterministic
    torch.backends.cudnn.benchmark = not config.train.deterministic
    return device, threads
