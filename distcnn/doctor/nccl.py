"""Check that NCCL connects the ranks, and measure it.

No rank can choose between NCCL and gloo alone: if only some have a GPU, they would wait for each other in different
groups. So they connect over gloo, compare their GPUs, and try NCCL only if all can. What may hang runs in a thread,
which is abandoned after a timeout.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.timeout import call_with_timeout
from distcnn.distributed.world import World
from distcnn.doctor.devices import Gpu
from distcnn.doctor.findings import Finding, fail
from distcnn.doctor.network import Measured, Transport, measure
from distcnn.errors import first_line

_HUNG = "nothing moved"


def over_nccl(world: World, gpu: Gpu, hosts: Sequence[str], timeout_s: float) -> tuple[Measured | None, list[Finding]]:
    """Measure over NCCL; return None and the reason if it fails on any rank. A collective.

    After a failure ranks may still hang in NCCL: do not destroy the group.
    """
    with tempfile.TemporaryDirectory(prefix="distcnn-doctor-") as folder:
        log = Path(folder) / "nccl.txt"
        if "NCCL_DEBUG" not in os.environ:  # NCCL gives its reasons only in its log
            os.environ |= {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": str(log)}
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # otherwise PyTorch aborts the process
        host = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

        def work(alive: Callable[[str], None]) -> Measured:
            alive("the first all-reduce")
            return measure(Transport(world, *connect(gpu), host, alive), hosts)

        measured, problem = None, ""
        try:  # shorter than the wait of ranks that fail at once, below
            measured = call_with_timeout(work, timeout_s / 2, _HUNG)
        except Exception as error:  # any: the others wait for this rank's result
            problem = "; ".join([first_line(error), *log_warnings(log)])
    problems = gather_objects(problem)
    if not any(problems):
        return measured, []
    # Prefer the message of a rank that failed to that of one that hung.
    rank, text = min(
        ((rank, text) for rank, text in enumerate(problems) if text), key=lambda one: one[1].startswith(_HUNG)
    )
    fix = (
        "NCCL_DEBUG=INFO shows how it connects; NCCL_SOCKET_IFNAME names its interface, NCCL_P2P_DISABLE=1 and "
        "NCCL_IB_DISABLE=1 avoid a broken transport; in a container use --shm-size and --ipc=host"
    )
    return None, [fail("nccl", f"rank {rank} on {hosts[rank]}: {text}", fix)]


def connect(gpu: Gpu) -> tuple[torch.device, Any]:
    """Return this rank's device, and an NCCL group of all ranks after a first all-reduce."""
    device = torch.device("cuda", gpu.index)
    torch.cuda.set_device(device)  # of this thread
    # Longer than any measurement: PyTorch's timeout would end the process.
    group: Any = dist.new_group(backend="nccl", timeout=timedelta(hours=1), device_id=device)
    dist.all_reduce(torch.ones(1, device=device), group=group)
    torch.cuda.synchronize(device)
    return device, group


def log_warnings(log: Path) -> list[str]:
    """Return the last three warnings of NCCL's log."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition("NCCL WARN ")[2].strip() for line in lines if "NCCL WARN " in line][-3:]
