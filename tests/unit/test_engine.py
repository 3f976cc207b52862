"""bf16-master: a network in bfloat16, fp32 masters, and what lies between them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from distcnn.config.schema import OptimConfig
from distcnn.engine.base import StepOptions
from distcnn.engine.ddp import DDPEngine
from distcnn.engine.master_weights import bf16_copy
from distcnn.models.build import build_model
from distcnn.optim.optimizers import make_optimizer

CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    return build_model("resnet9", 10, 16, {"width": 4}).to(memory_format=torch.channels_last)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(count)
    ]


def step(engine, micro_batches):
    engine.begin()
    for number, (images, labels) in enumerate(micro_batches, 1):
        with engine.autocast():
            logits = engine.forward(images.bfloat16())
        loss = F.cross_entropy(logits.float(), labels) / len(micro_batches)
        engine.backward(loss, sync=number == len(micro_batches))
    engine.step()


def test_the_copy_shares_what_is_not_a_matrix():
    model = network()
    twin = bf16_copy(model)
    for (name, own), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (theirs is own) == (own.ndim <= 1), name
        assert theirs.dtype == (torch.float32 if own.ndim <= 1 else torch.bfloat16)
        assert theirs.stride() == own.stride()
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("kind", ["fp64", "fp32"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_step_is_that_of_bf16_gradients_summed_in_more_than_bf16(kind, count):
    """The reference computes each micro-batch's bfloat16 gradient by itself and sums them in float64."""
    model, data = network(), batches(count)
    engine = DDPEngine(
        model, torch.optim.SGD(model.parameters(), 0.1), CPU, StepOptions("bf16-master", None, kind, count)
    )
    before = copy.deepcopy(model)
    step(engine, data)
    totals = [torch.zeros_like(p, dtype=torch.float64) for p in before.parameters()]
    twin = bf16_copy(before)
    twin.train()
    for images, labels in data:
        twin.zero_grad()
        (F.cross_entropy(twin(images.bfloat16()).float(), labels) / count).backward()
        for total, p in zip(totals, twin.parameters(), strict=True):
            total += p.grad
    for p, old, total in zip(model.parameters(), before.parameters(), totals, strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, old - 0.1 * total.float(), rtol=1e-6, atol=1e-8)


def test_small_steps_are_not_lost_in_bfloat16():
    """A hundred steps of a thousandth: bfloat16 weights alone would not move at all."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine = DDPEngine(model, torch.optim.SGD(model.parameters(), 0.001), CPU, StepOptions("bf16-master"))
    for _ in range(100):
        engine.begin()
        engine.backward(engine.forward(torch.ones(1, 1, dtype=torch.bfloat16)).sum(), sync=True)
        engine.step()
    assert model.weight.item() == pytest.approx(0.9, rel=1e-5)
    engine.begin()
    assert engine.compute_model.weight.item() == torch.tensor(0.9).bfloat16().item()


def test_what_is_saved_are_the_masters():
    model = network()
    engine = DDPEngine(model, torch.optim.SGD(model.parameters(), 0.1), CPU, StepOptions("bf16-master"))
    step(engine, batches(1))
    assert engine.model.state_dict().keys() == network().state_dict().keys()
    assert {t.dtype for t in engine.model.state_dict().values()} == {torch.float32, torch.int64}


def test_the_configs_settings_of_an_optimizer_win_over_those_saved():
    """Weight decay, momentum and a head's rate may be changed on a resume, where that is allowed."""
    before, now = (OptimConfig(name="muon", lr=0.1, head_lr=rate, weight_decay=d, args={"momentum": m})
                   for rate, m, d in ((5.0, 0.6, 0.1), (7.0, 0.8, 0.2)))  # fmt: skip
    saved, model = network(), network()
    first = DDPEngine(saved, make_optimizer(saved, before, 0.1), CPU, StepOptions("bf16-master"))
    step(first, batches(1))
    second = DDPEngine(model, make_optimizer(model, now, 0.1), CPU, StepOptions("bf16-master"))
    second.load_state_dict(first.state_dict())
    assert {group["momentum"] for group in second.optimizer.param_groups} == {0.8}
    assert {group["weight_decay"] for group in second.optimizer.param_groups} == {0.0, 0.2}
    assert max(group["lr_scale"] for group in second.optimizer.param_groups) == 7.0 / 0.1
    for p, q in zip(saved.parameters(), model.parameters(), strict=True):
        state, other = first.optimizer.state[p], second.optimizer.state[q]
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])


def test_a_weight_without_a_gradient_stays():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for precision in ("fp32", "bf16-master"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        engine = DDPEngine(model, optimizer, CPU, StepOptions(precision, micro_batches=3))
        before = model[1].weight.detach().clone()
        engine.begin()
        for number in range(3):
            with engine.autocast():
                loss = engine.compute_model[0](torch.ones(1, 2)).sum()
            engine.backward(loss, sync=number == 2)
        engine.step()
        assert torch.equal(model[1].weight, before)
