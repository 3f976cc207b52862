"""The learning rate that the optimizer holds when it is called, at every step, against each schedule's formula."""

import math

import pytest

from tests import by_hand
from tests.records import metrics

PEAK = 0.5
STEPS = 10
BASE = {"optim.lr": PEAK, "train.duration": f"{STEPS}step", "data.args.train": 20, "train.batch_size": 4}


def half_cosine(start, end, done):
    """From start to end along half a cosine: cos² of a quarter turn is what is left of the way."""
    return end + (start - end) * math.cos(math.pi / 2 * done) ** 2


WARM_UP = [1 / 4, 2 / 4, 3 / 4]  # of three steps: a straight line that reaches the peak with the fourth
SCHEDULES = {
    "constant": ({}, [1] * 10),
    "constant, warm-up": ({"warmup": "3step"}, [*WARM_UP, 1, 1, 1, 1, 1, 1, 1]),
    "linear": ({"name": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    "linear, warm-up": (
        {"name": "linear", "warmup": "3step", "args.final": 0.3},
        [*WARM_UP, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
    ),
    "step": ({"name": "step", "args.milestones": ["4step", "8step"]}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    "step in epochs": (  # of five steps
        {"name": "step", "args.milestones": ["1ep"], "args.gamma": 0.5, "warmup": "3step"},
        [*WARM_UP, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5],
    ),
    "cosine": ({"name": "cosine"}, [half_cosine(1, 0, s / 10) for s in range(10)]),
    "cosine, warm-up": (
        {"name": "cosine", "warmup": "3step", "args.final": 0.1},
        [*WARM_UP, *(half_cosine(1, 0.1, s / 7) for s in range(7))],
    ),
    "onecycle": (  # the peak is at step 3
        {"name": "onecycle"},
        [*(half_cosine(0.04, 1, s / 3) for s in range(3)), *(half_cosine(1, 0, s / 7) for s in range(7))],
    ),
    "onecycle, late": (
        {"name": "onecycle", "args": {"rise": 0.8, "initial": 0.5, "final": 0.2}},
        [*(half_cosine(0.5, 1, s / 8) for s in range(8)), 1, half_cosine(1, 0.2, 1 / 2)],
    ),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_optimizer_holds_the_schedules_rate_at_every_step_and_moves_by_it(tmp_path, case):
    schedule, shares = SCHEDULES[case]
    result, seen = by_hand.train(tmp_path, BASE | {f"schedule.{key}": value for key, value in schedule.items()})
    held = [step.rates for step in seen.steps]
    assert held == [[pytest.approx(PEAK * share)] for share in shares]
    assert [[line["lr"]] for line in metrics(result.folder, "train")] == held
    # Plain SGD: what a weight has moved, over its gradient, is the rate.
    for step, share in zip(seen.steps, shares, strict=True):
        gradient = step.gradients["head.weight"].double()
        moved = step.before["head.weight"].double() - step.after["head.weight"].double()
        rate = float((moved * gradient).sum() / gradient.square().sum())
        assert rate == pytest.approx(PEAK * share, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "groups"),
    [
        ({"name": "sgd"}, {"conv.weight": 1, "conv.bias": 3, "head.weight": 0.2, "head.bias": 3}),
        ({"name": "adamw", "args": {}}, {"conv.weight": 1, "conv.bias": 3, "head.weight": 0.2, "head.bias": 3}),
        ({"name": "muon", "args": {"momentum": 0.6}}, {"conv.weight": 1, "conv.bias": 3, "head.weight": 0.2, "head.bias": 3}),
    ],
)  # fmt: skip
def test_the_heads_and_the_biases_rates_are_scaled_alike(tmp_path, optimizer, groups):
    settings = {"schedule.name": "linear", "optim.head_lr": 0.2 * PEAK, "optim.bias_lr": 3 * PEAK}
    settings |= {f"optim.{key}": value for key, value in optimizer.items()}
    result, seen = by_hand.train(tmp_path, BASE | settings)
    shares = SCHEDULES["linear"][1]
    for step, share in zip(seen.steps, shares, strict=True):
        assert sorted(step.rates) == pytest.approx([PEAK * share * scale for scale in sorted(set(groups.values()))])
    if optimizer["name"] == "sgd":
        for name, scale in groups.items():
            moved = seen.steps[5].before[name] - seen.steps[5].after[name]
            expected = PEAK * 0.5 * scale * seen.steps[5].gradients[name]
            assert moved.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6)
    assert [line["lr"] for line in metrics(result.folder, "train")] == pytest.approx([PEAK * s for s in shares])


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("linear", 1 / 4), ("sqrt", 1 / 2)])
def test_the_peak_follows_the_global_batch(tmp_path, scaling, factor):
    settings = {"optim.lr_scaling": scaling, "optim.base_batch": 16, "schedule.name": "linear"}
    _, seen = by_hand.train(tmp_path, BASE | settings)
    expected = [PEAK * factor * share for share in SCHEDULES["linear"][1]]
    assert [step.rates for step in seen.steps] == [[pytest.approx(rate)] for rate in expected]


def test_after_a_resume_the_rate_goes_on_where_it_stood(tmp_path):
    settings = BASE | {"schedule.name": "cosine", "schedule.warmup": "3step"}
    _, whole = by_hand.train(tmp_path, settings | {"name": "whole", "checkpoint.every": "4step", "checkpoint.keep": 9})
    [checkpoint] = (tmp_path / "whole" / "checkpoints").glob("step-*4.pt")
    _, rest = by_hand.train(tmp_path, settings | {"name": "rest", "checkpoint.resume": str(checkpoint)})
    assert [step.rates for step in rest.steps] == [step.rates for step in whole.steps[4:]]
    assert len(rest.steps) == 6
