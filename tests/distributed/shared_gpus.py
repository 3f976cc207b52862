"""Run on ranks whose GPUs are pretended: their identities, or "none", stand in GPU. What is said of them, and what goes over gloo.

Where no two are the same the group is made as for NCCL, with a backend that exchanges nothing in its place: what is on
the host goes over gloo all the same.
"""

import os

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg

from distcnn.distributed import device_check
from distcnn.distributed.collectives import check_same, gather_objects, on_main, sum_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import world_from
from distcnn.errors import InputError

init = dist.init_process_group


def without_nccl(backend: str, device_id: torch.device, **options: object) -> None:
    init(backend.replace("nccl", "fake"), **options)


dist.init_process_group = without_nccl
device_check.gpu_identity = lambda _: os.environ["GPU"]
device_check.may_share_gpus = lambda: "MAY" in os.environ
world = world_from(os.environ)
try:
    device, backend = (
        (torch.device("cuda", 0), "nccl") if os.environ["GPU"] != "none" else (torch.device("cpu"), "gloo")
    )
    with process_group(world, device=device, backend=backend, timeout_s=60):
        check_same({"what": 1})
        ranks, answer = gather_objects(world.rank), on_main(lambda: "of rank 0", "rank 0")
        total = int(sum_ranks(torch.tensor(world.rank + 1)))
        print(f"rank {world.rank}: {ranks} {answer} {total}")
except InputError as error:
    print(f"rank {world.rank}: {error}")
