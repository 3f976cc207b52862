"""Optimizers, and which parameters they decay."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distcnn.config.schema import OptimConfig
from distcnn.models import build_model
from distcnn.optim.optimizers import make_optimizer, parameter_groups
from tests import by_hand


def test_weights_decay_and_one_dimensional_parameters_do_not():
    model = build_model("resnet9", 10, 8, {"width": 4})
    decayed, bare = parameter_groups(model, OptimConfig(weight_decay=0.01))
    assert (decayed["weight_decay"], bare["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    names = {id(p): name for name, p in model.named_parameters()}
    normalised = [f"{name}.{kind}" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)
                  for kind in ("weight", "bias")]  # fmt: skip
    assert sorted(names[id(p)] for p in bare["params"]) == sorted(normalised)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["simple_cnn", "compact_cnn"])
def test_every_trained_parameter_appears_once(name, weight_decay):
    model = build_model(name, 10, 16)
    next(model.parameters()).requires_grad_(False)
    given = [
        id(p) for group in parameter_groups(model, OptimConfig(weight_decay=weight_decay)) for p in group["params"]
    ]
    assert sorted(given) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_model_of_matrices_alone_has_one_group():
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), OptimConfig(weight_decay=0.1))) == 1


@pytest.mark.parametrize(
    ("name", "kind", "reference"),
    [
        ("sgd", torch.optim.SGD, lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.2)),
        ("adam", torch.optim.Adam, lambda p: torch.optim.Adam(p, 0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.2)),
        ("adamw", torch.optim.AdamW, lambda p: torch.optim.AdamW(p, 0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.2)),
    ],
)
def test_the_configured_optimizer_with_the_configured_numbers(name, kind, reference):
    config = OptimConfig(name=name, momentum=0.8, beta1=0.7, beta2=0.9, eps=1e-3, weight_decay=0.2)
    models = [nn.Linear(3, 2, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(models[0], config, 0.1), reference(models[1].parameters())]
    assert type(optimizers[0]) is kind
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.full((1, 3), 1.0 + step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(models[0].weight, models[1].weight)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_resume_with_other_groups_gives_each_parameter_its_own_state(name, tmp_path):
    """A decay of 1e-30 changes no number, but what is 1-d gets a group of its own."""
    settings = {"optim.name": name, "optim.lr": 0.01, "optim.momentum": 0.9, "optim.nesterov": True}
    settings |= {"train.duration": "4step", "checkpoint.every": "2step", "checkpoint.keep": 9}
    whole, _ = by_hand.train(tmp_path, settings | {"name": "whole"})
    changed = {"optim.weight_decay": 1e-30, "checkpoint.allow_changes": ["optim.weight_decay"]}
    changed |= {"checkpoint.resume": str(whole.folder / "checkpoints" / "step-00000002.pt"), "name": "changed"}
    rest, _ = by_hand.train(tmp_path, settings | changed)
    first, second = (load_file(result.folder / "model.safetensors") for result in (whole, rest))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    state = torch.load(rest.folder / "checkpoints" / "step-00000004.pt", weights_only=True)["optimizer"]
    assert len(state["param_groups"]) == 2 + (name == "muon")
