"""Mixup and CutMix: the arithmetic of shares, pixels, targets and loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distcnn.data.augment.cutmix import Cutmix
from distcnn.data.augment.mixup import Mixup
from distcnn.data.keyed import beta, keyed
from tests.loaders import drawn, places

N, HEIGHT, WIDTH, CLASSES = 6, 8, 5, 4


def at(n=N, epoch=0, first=0, height=HEIGHT, width=WIDTH):
    return places(n, 3, epoch, first, height, width)


def bounds(draws):
    return [draws[name].tolist() for name in ("top", "bottom", "left", "right")]


def batch():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(N, HEIGHT, WIDTH, 3, generator=rng), torch.tensor([0, 1, 2, 3, 0, 0])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_beta_has_the_distribution_and_follows_the_position_alone(alpha):
    numbers = beta(alpha, keyed(1), np.arange(50_000))
    assert (numbers >= 0).all()
    assert (numbers <= 1).all()
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() * 4 * (2 * alpha + 1) - 1) < 0.03  # the variance of Beta(a, a) is 1 / (4 (2a + 1))
    reference = np.random.default_rng(0).beta(alpha, alpha, 50_000)
    quantiles = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(numbers, quantiles) - np.quantile(reference, quantiles)).max() < 0.03
    assert (beta(alpha, keyed(1), np.arange(700, 800)) == numbers[700:800]).all()
    assert (beta(alpha, keyed(2), np.arange(700, 800)) != numbers[700:800]).any()


def test_mixup_blends_each_image_and_label_with_those_before():
    mix, (images, labels) = Mixup(CLASSES, 1.0), batch()
    mixed, targets = mix(images, labels, drawn(mix, at()), 0)
    shares = torch.from_numpy(beta(1.0, keyed(3, 0), np.arange(N))).float()
    for i, share in enumerate(shares):
        torch.testing.assert_close(mixed[i], share * images[i] + (1 - share) * images[i - 1], rtol=0, atol=1e-6)
        expected = share * F.one_hot(labels[i], CLASSES) + (1 - share) * F.one_hot(labels[i - 1], CLASSES)
        torch.testing.assert_close(targets[i], expected.float(), rtol=0, atol=1e-6)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    mix, (images, labels) = Cutmix(CLASSES, 1.0), batch()
    boxes = 0
    for epoch in range(20):
        draws = drawn(mix, at(epoch=epoch))
        mixed, targets = mix(images, labels, draws, 0)
        for i, (top, bottom, left, right) in enumerate(zip(*bounds(draws), strict=True)):
            assert 0 <= top <= bottom <= HEIGHT
            assert 0 <= left <= right <= WIDTH
            expected = images[i].clone()
            expected[top:bottom, left:right] = images[i - 1, top:bottom, left:right]
            assert torch.equal(mixed[i], expected)
            foreign = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
            expected = (1 - foreign) * F.one_hot(labels[i], CLASSES) + foreign * F.one_hot(labels[i - 1], CLASSES)
            torch.testing.assert_close(targets[i], expected, rtol=0, atol=1e-6)
            boxes += foreign > 0
    assert boxes > 60


def test_a_box_inside_the_image_has_the_drawn_share():
    """Away from the edges, where nothing is cut off: its sides are those of the image times the root of the share."""
    n, side = 2000, 1000
    positions = np.arange(n)
    draws = drawn(Cutmix(CLASSES, 1.0), at(n, height=side, width=side))
    top, bottom, left, right = map(np.array, bounds(draws))
    inside = (top > 0) & (bottom < side) & (left > 0) & (right < side)
    assert inside.sum() > 300
    area = ((bottom - top) * (right - left) / side**2)[inside]
    np.testing.assert_allclose(area, 1 - beta(1.0, keyed(3, 0), positions)[inside], atol=2e-3)
    centre = ((top + bottom) / 2)[inside] / side
    assert abs(centre.mean() - 0.5) < 0.03


@pytest.mark.parametrize("mix", [Mixup(CLASSES, 1.0), Cutmix(CLASSES, 1.0)], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_both_labels_by_their_shares(mix, smoothing):
    images, labels = batch()
    logits = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(1))
    _, targets = mix(images, labels, drawn(mix, at(first=N)), 0)
    own, other = (
        F.cross_entropy(logits, one, label_smoothing=smoothing, reduction="none") for one in (labels, labels.roll(1))
    )
    share = targets.gather(1, labels[:, None])[:, 0]
    different = labels != labels.roll(1)
    share[~different] = 1.0
    expected = (share * own + (1 - share) * other).mean()
    torch.testing.assert_close(F.cross_entropy(logits, targets, label_smoothing=smoothing), expected)


def test_draws_depend_on_the_place_in_the_epoch_alone():
    for mix in (Mixup(CLASSES, 0.2), Cutmix(CLASSES, 1.0)):
        whole, part, other = (drawn(mix, at(*where)) for where in ((100,), (10, 0, 40), (100, 1)))
        for name, values in whole.items():
            assert torch.equal(part[name], values[40:50])
            assert not torch.equal(other[name], values)
