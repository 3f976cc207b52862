"""Run on two ranks that begin with different weights: after some steps in bf16-master, are their masters the same?"""

import os

import torch

from distcnn.models import build_model
from distcnn.parallel.collectives import stack_ranks
from distcnn.parallel.engine_ddp import DDPEngine
from distcnn.parallel.meeting import process_group
from distcnn.parallel.world import world_from

world = world_from(os.environ)
torch.set_num_threads(1)
with process_group(world, cuda=False, timeout_s=60):
    torch.manual_seed(world.rank)
    model = build_model("simple_cnn", 10, 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    engine = DDPEngine(model, optimizer, torch.device("cpu"), "bf16-master", micro_batches=2)
    for _ in range(3):
        engine.begin()
        with engine.autocast():
            logits = engine.forward(torch.randn(4, 3, 16, 16))
        engine.backward(logits.square().mean(), sync=True)
        engine.step()
    ranks = [stack_ranks(p.detach()) for p in model.parameters()]
    if world.is_main:
        print("the same" if all(torch.equal(*both) for both in ranks) else "different")
