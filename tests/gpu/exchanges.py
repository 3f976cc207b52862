"""One rank of R1: every collective that distcnn uses, on values whose sums are known: python -m tests.gpu.exchanges"""

import os
import sys

import torch
import torch.distributed as dist

from distcnn.distributed.collectives import broadcast_main, check_same, gather_objects, on_main, stack_ranks, sum_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import world_from


def main() -> None:
    cuda = sys.argv[1] == "cuda"
    world = world_from(os.environ)
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    n, total = world.size, sum(range(1, world.size + 1))
    with process_group(world, device=device, backend="nccl" if cuda else "gloo", timeout_s=60):
        for dtype in (torch.float32, torch.float64, torch.int64):
            for size in (1, 1000, 1_000_003):
                own = (torch.arange(size, device=device) % 97 + 1).to(dtype)
                summed = sum_ranks(own * (world.rank + 1))
                assert torch.equal(summed, own * total), (dtype, size)
        handle = dist.all_reduce(part := torch.ones(1000, device=device, dtype=torch.float64), async_op=True)
        assert torch.equal(handle.get_future().then(lambda _: part).wait(), torch.full_like(part, n))
        stacked = stack_ranks(torch.full((3,), float(world.rank), device=device))
        assert stacked.tolist() == [[float(rank)] * 3 for rank in range(n)]
        given = [torch.full((5,), float(world.rank + 7), device=device)]
        broadcast_main(given)
        assert given[0].tolist() == [7.0] * 5
        assert gather_objects({"rank": world.rank}) == [{"rank": rank} for rank in range(n)]
        assert on_main(lambda: "chosen", "rank 0") == "chosen"
        check_same({"seed": 1})
        sent, got = torch.full((10,), float(world.rank), device=device), torch.empty(10, device=device)
        before, after = (world.rank - 1) % n, (world.rank + 1) % n
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, got, before)]):
            work.wait()
        assert got.tolist() == [float(before)] * 10
    print("exact", flush=True)


if __name__ == "__main__":
    main()
