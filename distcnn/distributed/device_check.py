"""Check at the rendezvous that the ranks' devices can form a process group, which would otherwise hang."""

import json
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from distcnn.distributed.device import Backend, gpu_identity, may_share_gpus
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.text import listed_ranks


class RankDevice(NamedTuple):
    """The device and backend of a rank."""

    host: str
    backend: Backend
    gpu: str  # see gpu_identity; "" for none
    may_share: bool  # see may_share_gpus


def rank_device(device: torch.device, backend: Backend) -> RankDevice:
    """Describe this rank's device."""
    gpu = gpu_identity(device.index) if device.type == "cuda" else ""
    return RankDevice(socket.gethostname(), backend, gpu, backend == "nccl" and may_share_gpus())


def check_devices(store: Any, world: World, own: RankDevice) -> None:
    """Raise InputError on all ranks if their devices cannot form a process group. Called by all ranks."""
    store.set(f"device/{world.rank}", json.dumps(own))
    texts = store.multi_get([f"device/{rank}" for rank in range(world.size)])
    devices = [RankDevice(*json.loads(text)) for text in texts]
    store.set(f"device/read/{world.rank}", "")
    if world.is_main:  # it may serve the store: stay until all have read
        store.wait([f"device/read/{rank}" for rank in range(world.size)])
    if len({device.backend for device in devices}) > 1:
        without = [f"rank {rank} on {one.host}" for rank, one in enumerate(devices) if one.backend != "nccl"]
        raise InputError(
            f"train.device: {len(without)} of {world.size} ranks see no GPU: {', '.join(without[:8])}"
            f"{' and others' * (len(without) > 8)}; check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES there, or "
            "set train.device cpu for all"
        )
    exclusive = own.backend == "nccl" and not all(device.may_share for device in devices)
    if exclusive and (problem := shared_gpus([device.gpu for device in devices])):
        raise InputError(problem)


def shared_gpus(gpus: Sequence[str]) -> str:
    """Say which ranks share a GPU, given each rank's `gpu_identity`; empty if none do."""
    ranks: dict[str, list[int]] = {}
    for rank, gpu in enumerate(gpus):
        ranks.setdefault(gpu, []).append(rank)
    shared = [f"{listed_ranks(those)} have the same GPU, {gpu}" for gpu, those in ranks.items() if len(those) > 1]
    fix = (
        "start one rank per GPU (with Slurm one task per GPU: --ntasks-per-node equal to --gpus-per-node), check "
        "whether CUDA_VISIBLE_DEVICES is the same for all, or set train.backend gloo, which lets ranks share one"
    )
    return f"train.device: {'; '.join(shared)}: {fix}" if shared else ""
