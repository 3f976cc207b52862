"""A step as it is configured, against the same step by hand: clipping, and the averages of the weights."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import distcnn
from tests import by_hand
from tests.records import metrics

LR = by_hand.SETTINGS["optim"]["lr"]


def moved(step: by_hand.Step) -> dict[str, torch.Tensor]:
    """What was subtracted from each weight, over the learning rate."""
    return {name: (step.before[name].double() - step.after[name].double()) / LR for name in step.before}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in found)


def clipped_by_torch(network: nn.Module, limit: float) -> dict[str, torch.Tensor]:
    nn.utils.clip_grad_norm_(network.parameters(), limit)
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def clipped_by_hand(network: nn.Module, limit: float) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad for name, p in network.named_parameters()}
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    return {name: g * min(1.0, limit / norm) for name, g in gradients.items()}


@pytest.mark.parametrize("gradient_sum", ["fp64", "fp32"])
@pytest.mark.parametrize("micro_batch", [4, 6, 12])
def test_a_clipped_step_is_that_of_the_whole_batchs_clipped_gradient(tmp_path, micro_batch, gradient_sum):
    limit = 0.1
    settings = {"train.clip_norm": limit, "train.micro_batch": micro_batch, "train.gradient_sum": gradient_sum}
    _, seen = by_hand.train(tmp_path, settings)
    _, labels = by_hand.raw()
    assert [[len(images) for images in step.images] for step in seen.steps[:2]] == {
        4: [[4, 4, 4], [4, 4, 2]], 6: [[6, 6], [6, 4]], 12: [[12], [10]]
    }[micro_batch]  # fmt: skip
    for step in seen.steps:
        images = torch.cat(step.images)
        network = by_hand.gradient(step.before, images, labels[by_hand.rows_of(images)])
        assert sum(float(p.grad.square().sum()) for p in network.parameters()) > (1.5 * limit) ** 2
        for expected in (clipped_by_hand(network, limit), clipped_by_torch(network, limit)):
            assert close(moved(step), expected)
        if micro_batch == 4:  # to clip each micro-batch's gradient would be another step
            parts = [
                clipped_by_hand(by_hand.gradient(step.before, part, labels[by_hand.rows_of(part)]), limit)
                for part in step.images
            ]
            sizes = [len(part) / len(images) for part in step.images]
            wrong = {name: sum(s * part[name] for s, part in zip(sizes, parts, strict=True)) for name in parts[0]}
            assert not close(moved(step), wrong)


@pytest.mark.parametrize("limit", [None, 100.0])
def test_a_gradient_below_the_limit_is_left_as_it_is(tmp_path, limit):
    _, seen = by_hand.train(tmp_path, {"train.clip_norm": limit} if limit else {})
    _, labels = by_hand.raw()
    for step in seen.steps:
        images = torch.cat(step.images)
        network = by_hand.gradient(step.before, images, labels[by_hand.rows_of(images)])
        assert close(moved(step), {name: p.grad for name, p in network.named_parameters()})


def in_numpy(weights: by_hand.Weights) -> dict[str, np.ndarray]:
    return {name: t.double().numpy() for name, t in weights.items() if t.is_floating_point()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def differ(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return any(np.abs(one[name] - other[name]).max() > 1e-2 for name in one)


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_moving_average_is_what_is_evaluated_and_exported(tmp_path, decay):
    """With 0.3 the warm-up of the decay ends after two steps; with 0.99 it lasts all the five."""
    settings = {"train.ema": decay, "eval.every": "1step", "model.args": {"norm": True}}
    result, seen = by_hand.train(tmp_path, settings)
    averages, average = [], in_numpy(seen.steps[0].before)
    for name in ("norm.running_mean", "norm.running_var"):  # `before` is taken after the first forward
        average[name] = np.full(6, float(name == "norm.running_var"))
    for step, after in enumerate((in_numpy(step.after) for step in seen.steps), 1):
        d = min(decay, (1 + step) / (10 + step))
        average = {name: d * average[name] + (1 - d) * after[name] for name in average}
        averages.append(average)
    last = in_numpy(seen.steps[-1].after)
    assert differ(last, average)
    assert_equal(load_file(result.folder / "model.safetensors"), average)
    assert len(seen.evaluated) == 5
    test_images, test_labels = by_hand.raw("test")
    images, targets = torch.from_numpy(by_hand.normalised(test_images)), by_hand.one_hot(test_labels)
    for (found, _), expected, line in zip(seen.evaluated, averages, metrics(result.folder, "eval"), strict=True):
        assert_equal(in_numpy(found), expected)
        weights = {name: torch.from_numpy(value) for name, value in expected.items()}
        weights["norm.num_batches_tracked"] = torch.tensor(0)
        assert line["loss"] == pytest.approx(by_hand.cross_entropy(weights, images, targets, norm=True), rel=1e-5)
    # The training goes on with the weights, not with their average.
    for step, following in zip(seen.steps, seen.steps[1:], strict=False):
        assert torch.equal(step.after["head.weight"], following.before["head.weight"])
    [newest] = (result.folder / "checkpoints").glob("step-*5.pt")
    assert_equal(in_numpy(torch.load(newest, weights_only=True)["model"]), last)
    assert_equal(in_numpy(distcnn.load_model(newest).model.state_dict()), average)


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize("ema", [None, 0.3])
def test_lookahead_moves_the_weights_and_an_average_counts_them_where_they_then_are(tmp_path, rate, ema):
    """Every second step, and after the fifth, which is the last."""
    settings = {"train.lookahead": 2, "train.lookahead_rate": rate, "train.ema": ema, "eval.every": "1step"}
    result, seen = by_hand.train(tmp_path, {key: value for key, value in settings.items() if value is not None})
    slow = average = in_numpy(seen.steps[0].before)
    expected, averages = [], []
    for step, weights in enumerate((in_numpy(step.after) for step in seen.steps), 1):
        if step in (2, 4, 5):
            slow = {name: slow[name] + rate * (weights[name] - slow[name]) for name in slow}
            assert differ(slow, weights)
            weights = slow
        d = min(ema or 0, (1 + step) / (10 + step))
        average = {name: d * average[name] + (1 - d) * weights[name] for name in average}
        expected.append(weights)
        averages.append(average)
    for following, weights in zip(seen.steps[1:], expected, strict=False):
        assert_equal(in_numpy(following.before), weights)
    for (found, _), weights in zip(seen.evaluated, averages, strict=True):
        assert_equal(in_numpy(found), weights)
    assert_equal(load_file(result.folder / "model.safetensors"), averages[-1])


def test_without_an_average_the_last_weights_are_evaluated_and_exported(tmp_path):
    result, seen = by_hand.train(tmp_path)
    last = in_numpy(seen.steps[-1].after)
    assert_equal(load_file(result.folder / "model.safetensors"), last)
    assert_equal(in_numpy(seen.evaluated[-1][0]), last)


@pytest.mark.parametrize("settings", [{"train.ema": 0.8}, {"train.lookahead": 3}], ids=["ema", "lookahead"])
def test_after_a_resume_the_average_goes_on_where_it_stood(tmp_path, settings):
    settings = settings | {"checkpoint.every": "2step", "checkpoint.keep": 9}
    whole, _ = by_hand.train(tmp_path, settings | {"name": "whole"})
    checkpoint = whole.folder / "checkpoints" / "step-00000002.pt"
    rest, _ = by_hand.train(tmp_path, settings | {"name": "rest", "checkpoint.resume": str(checkpoint)})
    first, second = (load_file(result.folder / "model.safetensors") for result in (whole, rest))
    assert all(np.array_equal(array, second[name]) for name, array in first.items())
    assert metrics(whole.folder, "eval")[-1]["loss"] == metrics(rest.folder, "eval")[-1]["loss"]
