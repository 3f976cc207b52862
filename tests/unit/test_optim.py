"""Optimizers, and which parameters they decay."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distcnn.config.schema import Config, OptimConfig, ScheduleConfig, TrainConfig
from distcnn.errors import InputError
from distcnn.models.build import build_model
from distcnn.optim import OPTIMIZERS, SCHEDULES
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
    args = {"momentum": 0.8} if name == "sgd" else {"betas": [0.7, 0.9], "eps": 1e-3}
    config = OptimConfig(name=name, weight_decay=0.2, args=args)
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
    settings = {"optim.name": name, "optim.lr": 0.01, "optim.args": {} if name == "adamw" else {"momentum": 0.9}}
    settings |= {"train.duration": "4step", "checkpoint.every": "2step", "checkpoint.keep": 9}
    whole, _ = by_hand.train(tmp_path, settings | {"name": "whole"})
    changed = {"optim.weight_decay": 1e-30, "checkpoint.allow_changes": ["optim.weight_decay"]}
    changed |= {"checkpoint.resume": str(whole.folder / "checkpoints" / "step-00000002.pt"), "name": "changed"}
    rest, _ = by_hand.train(tmp_path, settings | changed)
    first, second = (load_file(result.folder / "model.safetensors") for result in (whole, rest))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    state = torch.load(rest.folder / "checkpoints" / "step-00000004.pt", weights_only=True)["optimizer"]
    assert len(state["param_groups"]) == 2 + (name == "muon")


# By name: what an optimizer or a schedule finds wrong, a stranger's, and PyTorch's own


def problems(section, name, **args):
    config = Config(**{section: {"name": name, "args": args}}, train=TrainConfig(precision="fp16"))
    parts = {"optim": OPTIMIZERS, "schedule": SCHEDULES}[section]
    return [*parts.problems(name, args, config, f"{section}.name", f"{section}.args")]


@pytest.mark.parametrize(
    ("section", "name", "args", "keys", "text"),
    [
        ("optim", "sgd", {"momentum": 1.0}, "optim.args.momentum", "less than 1"),
        ("optim", "sgd", {"momentum": 0}, "optim.args.nesterov optim.args.momentum", "needs a momentum above 0"),
        ("optim", "sgd", {"betas": [0.9, 0.9]}, "optim.args.betas", "sgd takes momentum, nesterov"),
        ("optim", "adamw", {"betas": [0.9, 1.0]}, "optim.args.betas", "less than 1"),
        ("optim", "adam", {"eps": True}, "optim.args.eps", "should be a number, not true or false"),
        ("optim", "muon", {}, "optim.name train.precision", "use bf16"),
        ("optim", "muon", {"nesterov": False}, "optim.args.nesterov", "muon takes momentum, fixed_norm"),
        ("optim", "sdg", {}, "optim.name", "did you mean sgd? valid: sgd, adam, adamw, muon"),
        ("schedule", "step", {}, "schedule.name schedule.args.milestones", "[5ep, 8ep]"),
        ("schedule", "step", {"milestones": [5]}, "schedule.args.milestones", "valid string"),
        ("schedule", "step", {"milestones": ["5"]}, "schedule.args.milestones", "a number and a unit: 10ep"),
        ("schedule", "constant", {"final": 0.1}, "schedule.args.final", "constant takes none"),
        ("schedule", "cos", {}, "schedule.name", "did you mean cosine"),
    ],
)
def test_what_is_wrong_with_a_part_names_its_keys(section, name, args, keys, text):
    ((found, message),) = problems(section, name, **args)
    assert found == tuple(keys.split())
    assert text in message


def test_what_is_near_to_wrong_is_fine():
    assert problems("optim", "sgd", momentum=0, nesterov=False) == []
    assert problems("schedule", "step", milestones=["1ep"]) == []
    assert problems("optim", "torch.optim:RMSprop", alpha=0.9) == []


def test_onecycle_has_a_warm_up_of_its_own():
    config = Config(schedule=ScheduleConfig(name="onecycle", warmup="1ep"))
    ((keys, _),) = SCHEDULES.problems("onecycle", {}, config, "schedule.name", "schedule.args")
    assert keys == ("schedule.warmup", "schedule.name")


def test_an_optimizer_of_pytorchs_by_its_place():
    model = nn.Linear(3, 2)
    config = OptimConfig(name="torch.optim:RMSprop", weight_decay=0.1, args={"alpha": 0.9})
    optimizer = make_optimizer(model, config, 0.25)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [(g["alpha"], g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [
        (0.9, 0.1, 0.25),
        (0.9, 0.0, 0.25),
    ]


class Plain(torch.optim.Optimizer):
    """A stranger's, without weight decay."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad


def halved(span, *, every: str = "1ep"):
    """A stranger's schedule."""
    return lambda step: 0.5 ** (step // span.in_steps(every))


def test_a_strangers_optimizer_and_schedule_train(tmp_path):
    settings = {"optim.name": f"{__name__}:Plain", "optim.args": {}, "schedule.name": f"{__name__}:halved"}
    settings |= {"schedule.args.every": "2step", "train.duration": "6step", "optim.bias_lr": 1.0}
    result, seen = by_hand.train(tmp_path, settings)
    assert [step.rates for step in seen.steps] == [[0.5 * f, 1.0 * f] for f in (1, 1, 0.5, 0.5, 0.25, 0.25)]
    for step in seen.steps:
        moved = step.before["head.bias"] - step.after["head.bias"]
        torch.testing.assert_close(moved, step.rates[1] * step.gradients["head.bias"])
    assert result.state.step == 6


def test_weight_decay_that_an_optimizer_does_not_have_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"optim\.weight_decay = 0\.1: tests\.unit\.test_optim:Plain has no weight decay"
    ):
        make_optimizer(nn.Linear(2, 2), OptimConfig(name="tests.unit.test_optim:Plain", weight_decay=0.1), 0.1)
