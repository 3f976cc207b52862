"""Whether NCCL connects the ranks, and what goes over it.

No rank can decide by itself between NCCL and gloo: where some have a GPU and others none, they would wait for each
other in different groups. So they meet over gloo, tell each other what they have, and try NCCL only if all can. What
may hang there runs in a thread, and is left behind when nothing moves any more.
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
    """Measure over NCCL; return None, with the reason, if it fails on any rank. A collective.

    Afterwards ranks may still hang in NCCL: then the group is not to be taken down in order.
    """
    with tempfile.TemporaryDirectory(prefix="distcnn-doctor-") as folder:
        log = Path(folder) / "nccl.txt"
        if "NCCL_DEBUG" not in os.environ:  # what NCCL says of its reasons goes to its log only
            os.environ |= {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": str(log)}
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # PyTorch's is to abort the process
        host = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

        def work(alive: Callable[[str], None]) -> Measured:
            alive("the first exchange")
            return measure(Transport(world, *connected(gpu), host, alive), hosts)

        measured, problem = None, ""
        try:  # shorter than the wait of those that failed at once, below
            measured = call_with_timeout(work, timeout_s / 2, _HUNG)
        except Exception as error:  # whatever it is: the others wait for a word of this rank
            problem = "; ".join([first_line(error), *last_words(log)])
    problems = gather_objects(problem)
    if not any(problems):
        return measured, []
    # A rank that waits in vain knows less than one that failed.
    rank, text = min(
        ((rank, text) for rank, text in enumerate(problems) if text), key=lambda one: one[1].startswith(_HUNG)
    )
    fix = (
        "NCCL_DEBUG=INFO shows how it connects; NCCL_SOCKET_IFNAME names its interface, NCCL_P2P_DISABLE=1 and "
        "NCCL_IB_DISABLE=1 leave out a way that is broken; in a container --shm-size and --ipc=host"
    )
    return None, [fail("nccl", f"rank {rank} on {hosts[rank]}: {text}", fix)]


def connected(gpu: Gpu) -> tuple[torch.device, Any]:
    """Return this rank's device, and a group over NCCL of all ranks in which a first exchange has worked."""
    device = torch.device("cuda", gpu.index)
    torch.cuda.set_device(device)  # of this thread
    # PyTorch's own limit is out of the way: it would end the process.
    group: Any = dist.new_group(backend="nccl", timeout=timedelta(hours=1), device_id=device)
    dist.all_reduce(torch.ones(1, device=device), group=group)
    torch.cuda.synchronize(device)
    return device, group


def last_words(log: Path) -> list[str]:
    """Return the last lines of its log in which NCCL says what it could not do."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition("NCCL WARN ")[2].strip() for line in lines if "NCCL WARN " in line][-3:]
