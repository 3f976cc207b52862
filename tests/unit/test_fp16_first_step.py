"""fp16: a first step that overflows is skipped whole, and leaves nothing behind that a later step would use."""

import pytest
import torch
from torch import nn

from distcnn.config.schema import OptimConfig
from distcnn.optim.optimizers import make_optimizer


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_after_a_skipped_first_step_the_next_is_as_the_first(name):
    def train(*gradients):
        model = nn.Linear(64, 64)
        nn.init.ones_(model.weight)
        optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.1), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(torch.ones(()))
        for gradient in gradients:
            junk = [torch.full((64, 64), torch.nan) for _ in range(8)]  # what the allocator gives out next
            model.weight.grad = torch.full((64, 64), gradient)
            del junk
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update(1.0)
        return model.weight.detach()

    assert torch.equal(train(torch.inf, 1.0, 1.0), train(1.0, 1.0))
