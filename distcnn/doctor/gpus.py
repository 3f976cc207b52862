"""The doctor on GPUs: has each rank one of its own, and does NCCL connect them?

No rank can decide by itself between NCCL and gloo: where some have a GPU and others none, they would wait for each
other in different groups. So they meet over gloo, tell each other what they have, and try NCCL only if all can. What
may hang there runs in a thread, and is left behind when nothing moves any more.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.device import gpu_identity, gpu_index, may_share_gpus
from distcnn.distributed.patience import patiently
from distcnn.distributed.rendezvous import shared_gpus
from distcnn.distributed.world import World
from distcnn.doctor.local import Finding
from distcnn.doctor.network import AllReduce, Pair, Way, measure
from distcnn.errors import first_line
from distcnn.text import listed_ranks

Measured = tuple[list[AllReduce], dict[Pair, float]]
_HUNG = "nothing moved"


@dataclass(frozen=True)
class Gpu:
    """What one rank has."""

    host: str
    index: int = 0
    identity: str = ""  # no other GPU's, on any host; empty where there is none that it can use
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    shared: bool = False  # whether this rank's NCCL would share it with another rank
    problem: str = ""  # what a GPU that is there says when it is used


def own_gpu(world: World, host: str) -> Gpu:
    """This rank's GPU, made the current one; on it a kernel has run."""
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


def usable(gpu: Gpu) -> list[Finding]:
    """Of a GPU that is there and cannot be used."""
    if not gpu.problem:
        return []
    cure = "look at nvidia-smi: another process may have it for itself, or this PyTorch has no code for such a GPU"
    return [Finding("devices", "fail", f"GPU {gpu.index} cannot be used: {gpu.problem}", f"{cure}; or leave it out")]


def gpu_findings(gpus: Sequence[Gpu], *, over_gloo: bool = False) -> list[Finding]:
    """Whether the ranks, in their order, can train on GPUs together; nothing where none has one. Over gloo they may
    share one.
    """
    if not any(gpu.identity for gpu in gpus):
        return []
    findings = []
    without: dict[tuple[str, str | None], list[int]] = {}
    for rank, gpu in enumerate(gpus):
        if not gpu.identity:
            without.setdefault((gpu.host, gpu.visible), []).append(rank)
    for (host, visible), ranks in without.items():
        variable = "" if visible is None else f", CUDA_VISIBLE_DEVICES = {visible!r}"
        text = f"{listed_ranks(ranks, 8)} on {host}{variable}: no GPU to use, where others have one"
        cure = (
            f"let every rank see a GPU (nvidia-smi on {host}; Slurm: --gpus-per-node or --gpus-per-task), start no "
            "ranks without one, or train on the CPUs: --train.device cpu"
        )
        findings.append(Finding("gpus", "fail", text, cure))
    names = [gpu.identity or f"none on rank {rank}" for rank, gpu in enumerate(gpus)]
    if (shared := shared_gpus(names)) and not (over_gloo or all(gpu.shared for gpu in gpus)):
        text, _, cure = shared.removeprefix("train.device: ").partition(": ")
        findings.append(Finding("gpus", "fail", text, cure))
    return findings or [Finding("gpus", "ok", f"{len(gpus)} ranks, each on a GPU that it can use")]


def over_nccl(world: World, gpu: Gpu, hosts: Sequence[str], timeout_s: float) -> tuple[Measured | None, list[Finding]]:
    """What is measured over NCCL; None, with the reason, if it fails on any rank. Called on all ranks alike.

    Afterwards ranks may still stand in NCCL: then the group is not to be taken down in order.
    """
    with tempfile.TemporaryDirectory(prefix="distcnn-doctor-") as folder:
        log = Path(folder) / "nccl.txt"
        if "NCCL_DEBUG" not in os.environ:  # what NCCL says of its reasons goes to its log only
            os.environ |= {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": str(log)}
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # PyTorch's is to abort the process
        host = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

        def work(alive: Callable[[str], None]) -> Measured:
            alive("the first exchange")
            return measure(Way(world, *connected(gpu), host, alive), hosts)

        measured, problem = None, ""
        try:  # shorter than the wait of those that failed at once, below
            measured = patiently(work, timeout_s / 2, _HUNG)
        except Exception as error:  # whatever it is: the others wait for a word of this rank
            problem = "; ".join([first_line(error), *last_words(log)])
    problems = gather_objects(problem)
    if not any(problems):
        return measured, []
    # Who waits in vain knows less than who failed.
    rank, text = min(
        ((rank, text) for rank, text in enumerate(problems) if text), key=lambda one: one[1].startswith(_HUNG)
    )
    cure = (
        "NCCL_DEBUG=INFO shows how it connects; NCCL_SOCKET_IFNAME names its interface, NCCL_P2P_DISABLE=1 and "
        "NCCL_IB_DISABLE=1 leave out a way that is broken; in a container --shm-size and --ipc=host"
    )
    return None, [Finding("nccl", "fail", f"rank {rank} on {hosts[rank]}: {text}", cure)]


def connected(gpu: Gpu) -> tuple[torch.device, Any]:
    """(this rank's device, a group over NCCL of all ranks), in which a first exchange has worked."""
    device = torch.device("cuda", gpu.index)
    torch.cuda.set_device(device)  # of this thread
    # PyTorch's own limit is out of the way: it would end the process.
    group: Any = dist.new_group(backend="nccl", timeout=timedelta(hours=1), device_id=device)
    dist.all_reduce(torch.ones(1, device=device), group=group)
    torch.cuda.synchronize(device)
    return device, group


def last_words(log: Path) -> list[str]:
    """The last lines in which NCCL says what it could not do."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition("NCCL WARN ")[2].strip() for line in lines if "NCCL WARN " in line][-3:]
