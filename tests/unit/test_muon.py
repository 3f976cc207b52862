"""Muon: singular values, its groups, and its steps against plain arithmetic."""

import pytest
import torch
from torch import nn

from distcnn.config.schema import OptimConfig
from distcnn.errors import InputError
from distcnn.models.build import build_model
from distcnn.optim.muon import Muon, orthogonalized
from distcnn.optim.optimizers import make_optimizer, set_lr


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (8, 8)])
def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalized(matrix, steps=5) @ v.T
    assert torch.diag(core).min() > 0.4
    assert torch.diag(core).max() < 1.4
    assert (core - torch.diag(torch.diag(core))).abs().max() < 0.05  # bfloat16
    assert values.max() / values.min() > 2  # it had something to do


def steps_of(model, optimizer, rates):
    for step, lr in enumerate(rates):
        torch.manual_seed(step)
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        set_lr(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 7), nn.ReLU(), nn.Linear(7, 4))


def test_biases_and_head_are_stepped_by_sgd_at_rates_of_their_own():
    model, twin = network(), network()
    config = OptimConfig(name="muon", lr=0.02, head_lr=0.3, bias_lr=0.1, weight_decay=0.5, args={"momentum": 0.8})
    optimizer = make_optimizer(model, config, lr=0.02)
    head, biases = [twin[4].weight], [twin[0].bias, twin[2].bias, twin[4].bias]
    filters = [twin[0].weight, twin[2].weight]
    sgd = torch.optim.SGD([{"params": head, "lr": 0.3}, {"params": biases, "lr": 0.1}], momentum=0.8, nesterov=True)
    for step, factor in enumerate((1.0, 0.5)):
        steps_of(model, optimizer, [0.02 * factor])
        torch.manual_seed(0)
        twin(torch.randn(4, 3, 8, 8)).square().mean().backward()
        with torch.no_grad():
            head[0] *= 1 - 0.02 * factor * 0.5
        for group, rate in zip(sgd.param_groups, (0.3, 0.1), strict=True):
            group["lr"] = rate * factor
        sgd.step()
        if step == 0:  # one step of a filter bank: all its singular values move by about lr × √max(1, rows / columns)
            for mine, before in zip([model[0].weight, model[2].weight], filters, strict=True):
                moved = torch.linalg.svdvals((mine - before * (1 - 0.02 * 0.5)).flatten(1)) / 0.02
                assert moved.max() > 0.7
                assert moved.max() < 1.6
        twin.zero_grad()
        for mine, its in zip([model[0].weight, model[2].weight], filters, strict=True):
            its.data.copy_(mine.detach())  # the rest is compared under the same filters
        for name, mine in model.named_parameters():
            torch.testing.assert_close(mine, dict(twin.named_parameters())[name])


def test_the_layout_of_a_filter_bank_does_not_matter():
    banks = [nn.Parameter(torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    banks[1].data = banks[1].data.to(memory_format=torch.channels_last)
    for bank in banks:
        bank.grad = torch.ones_like(bank).cumsum(2).cumsum(0) + bank.detach()
        Muon([{"params": [bank], "filters": True}], 0.1, fixed_norm=True).step()
    torch.testing.assert_close(banks[0], banks[1])
    assert banks[1].is_contiguous(memory_format=torch.channels_last)


def test_with_a_fixed_norm_the_weights_norm_is_restored_before_each_step():
    bank = nn.Parameter(torch.full((4, 2, 3, 3), 100.0))
    bank.grad = torch.zeros_like(bank)
    Muon([{"params": [bank], "filters": True}], 0.1, fixed_norm=True).step()
    assert bank.norm().item() == pytest.approx(2.0)


def test_a_resumed_optimizer_goes_on_with_its_momentum():
    config = OptimConfig(name="muon", lr=0.02, args={"momentum": 0.8})
    models = [network(), network()]
    straight, first, second = (make_optimizer(m, config, 0.02) for m in (models[0], models[1], models[1]))
    steps_of(models[0], straight, [0.02, 0.01])
    steps_of(models[0], straight, [0.01])
    steps_of(models[1], first, [0.02, 0.01])
    second.load_state_dict(first.state_dict())
    steps_of(models[1], second, [0.01])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_speed_runs_network_has_three_groups_and_leaves_its_first_layer_alone():
    model = build_model("whitened_cnn", 10, 32)
    config = OptimConfig(name="muon", lr=0.1, head_lr=5.0, bias_lr=2.0, weight_decay=0.1)
    groups = make_optimizer(model, config, 0.1).param_groups
    found = {
        tuple(sorted({p.ndim for p in g["params"]})): (g["filters"], g["lr_scale"], g["weight_decay"]) for g in groups
    }
    assert found == {(4,): (True, 1.0, 0.1), (2,): (False, 50.0, 0.1), (1,): (False, 20.0, 0.0)}
    assert all(p is not model.whiten.weight for g in groups for p in g["params"])


def test_a_scale_per_channel_is_no_filter_and_filters_of_zeros_stay_finite():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3))
    model.scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
    nn.init.zeros_(model[1].weight)
    optimizer = make_optimizer(model, OptimConfig(name="muon", lr=0.01, args={"fixed_norm": True}), 0.01)
    filters = [p for group in optimizer.param_groups if group["filters"] for p in group["params"]]
    assert len(filters) == 2
    (model(torch.ones(1, 3, 4, 4)) * model.scale).sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.scale.abs().max() < 1


def test_a_heads_rate_needs_a_head():
    with pytest.raises(InputError, match=r"optim\.head_lr: the network has no linear layer"):
        make_optimizer(nn.Conv2d(3, 4, 1), OptimConfig(head_lr=0.1), 0.1)
