"""Run on two ranks that begin with different weights: after some steps in bf16-master, are their masters the same?

And how many of gloo's threads are left when the engine and the group have gone?
"""

import os
from pathlib import Path

import torch

from distcnn.distributed.collectives import stack_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import World, world_from
from distcnn.engine.base import StepOptions
from distcnn.engine.ddp import DDPEngine
from distcnn.models.build import build_model


def masters_agree(world: World) -> bool:
    torch.manual_seed(world.rank)
    model = build_model("simple_cnn", 10, 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    engine = DDPEngine(model, optimizer, torch.device("cpu"), StepOptions("bf16-master", micro_batches=2))
    for _ in range(3):
        engine.begin()
        with engine.autocast():
            logits = engine.forward(torch.randn(4, 3, 16, 16))
        engine.backward(logits.square().mean(), sync=True)
        engine.step()
    ranks = [stack_ranks(p.detach()) for p in model.parameters()]
    return all(torch.equal(*both) for both in ranks)


world = world_from(os.environ)
torch.set_num_threads(1)
with process_group(world, device=torch.device("cpu"), timeout_s=60):
    agree = masters_agree(world)
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
if world.is_main:
    print("the same" if agree else "different", sum("gloo" in name for name in threads))
