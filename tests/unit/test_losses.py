"""The loss of a run: its own, a user's function or class, and what is refused before any rank has met another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distcnn.config.schema import Config, LossConfig
from distcnn.errors import InputError
from distcnn.training.build import build_loss
from distcnn.training.losses import LOSSES
from tests import by_hand

HERE = "tests.unit.test_losses"
LOGITS, LABELS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2])


def scaled(found, wanted, *, factor: float = 1.0):
    """Of any names."""
    return factor * F.cross_entropy(found, wanted)


class Weighted(nn.Module):
    made = 0

    def __init__(self, weight: float):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        Weighted.made += 1

    def forward(self, logits, targets):
        return self.weight * F.cross_entropy(logits, targets)


def of_each_image(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")


def a_number(logits, targets):
    return 1.5


def constant(logits, targets):
    return torch.zeros(())


def loss(name, **args):
    return build_loss(Config(loss=LossConfig(name=name, args=args)), 4, torch.device("cpu"))


def problems(name, **args):
    return [*LOSSES.problems(name, args, Config(), "loss.name", "loss.args")]


@pytest.mark.parametrize("targets", [LABELS, F.one_hot(LABELS, 4).float()])
def test_cross_entropy_is_that_of_pytorch(targets):
    for share in (0.0, 0.2):
        expected = F.cross_entropy(LOGITS, targets, label_smoothing=share)
        assert torch.equal(loss("cross_entropy", label_smoothing=share)(LOGITS, targets), expected)


def test_functions_and_classes_take_arguments():
    plain = F.cross_entropy(LOGITS, LABELS)
    assert torch.equal(loss(f"{HERE}:scaled", factor=3.0)(LOGITS, LABELS), 3 * plain)
    Weighted.made = 0
    weighted = loss(f"{HERE}:Weighted", weight=0.5)
    assert torch.equal(weighted(LOGITS, LABELS), 0.5 * plain)
    assert torch.equal(weighted(LOGITS, LABELS), 0.5 * plain)
    assert Weighted.made == 1
    assert torch.equal(loss("torch.nn:CrossEntropyLoss", label_smoothing=0.3)(LOGITS, LABELS),
                       F.cross_entropy(LOGITS, LABELS, label_smoothing=0.3))  # fmt: skip
    assert loss("torch.nn.functional:multi_margin_loss", p=2)(LOGITS, LABELS) > 0


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("cross_entropi", {}, "did you mean cross_entropy?"),
        ("cross_entropy", {"label_smoothing": 1}, "less than 1"),
        ("cross_entropy", {"smoothing": 0.1}, "cross_entropy takes label_smoothing"),
        (f"{HERE}:scaled", {"found": 1}, "scaled takes factor"),
        (f"{HERE}:Weighted", {}, "has to be given"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(name, args, said):
    [(keys, text)] = problems(name, **args)
    assert said in text
    assert keys[0].startswith("loss.")


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (f"{HERE}:of_each_image", {}, r"of shape \[\] and with a gradient, not \[2\]"),
        (f"{HERE}:a_number", {}, "float"),
        (f"{HERE}:constant", {}, "with a gradient"),
        ("torch.nn:CrossEntropyLoss", {"reduction": "sometimes"}, "ValueError: sometimes"),
        ("torch.nn:NLLLoss2d", {"weight": 1}, "loss.args = {'weight': 1}"),
    ],
)
def test_what_is_no_loss_is_bad_input(name, args, said):
    with pytest.raises(InputError, match=said):
        loss(name, **args)


def test_it_is_what_a_run_minimises(tmp_path):
    plain, _ = by_hand.train(tmp_path)
    double, seen = by_hand.train(tmp_path, {"loss.name": f"{HERE}:scaled", "loss.args.factor": 2.0})
    first, second = by_hand.losses(plain.folder), by_hand.losses(double.folder)
    assert second[0] == pytest.approx(2 * first[0], rel=1e-6)
    assert seen.steps[0].gradients
    assert second[1] != pytest.approx(2 * first[1], rel=1e-3)  # the steps are twice as long
    assert double.evaluation.loss_sum > 0  # in nats, as everyone's
