"""The losses in metrics.jsonl against -Σ q log p, with q and the images taken from what the network was given."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import by_hand
from tests.records import metrics

SMOOTHED = 0.2
LOADERS = {"resident": {}, "streaming": {"data.loader": "streaming", "data.workers": 0}}


def smoothed(targets: np.ndarray, share: float) -> np.ndarray:
    """`share` of each target is spread evenly over all classes, its own among them."""
    return (1 - share) * targets + share / by_hand.CLASSES


@pytest.mark.parametrize("share", [0.0, SMOOTHED])
@pytest.mark.parametrize("micro_batch", [4, 12])
def test_a_steps_loss_is_the_mean_over_the_images_of_the_whole_batch(tmp_path, micro_batch, share):
    """The second batch of an epoch has ten images: 4, 4 and 2."""
    result, seen = by_hand.train(tmp_path, {"loss.args.label_smoothing": share, "train.micro_batch": micro_batch})
    _, labels = by_hand.raw()
    expected, sharp = [], []
    for step in seen.steps:
        images = torch.cat(step.images)
        targets = by_hand.one_hot(labels[by_hand.rows_of(images)])
        expected.append(by_hand.cross_entropy(step.before, images, smoothed(targets, share)))
        sharp.append(by_hand.cross_entropy(step.before, images, targets))
    assert by_hand.losses(result.folder) == pytest.approx(expected, rel=1e-5)
    if share:
        assert by_hand.losses(result.folder) != pytest.approx(sharp, rel=1e-3)


def test_every_image_is_trained_once_an_epoch(tmp_path):
    _, seen = by_hand.train(tmp_path, {"train.duration": "2ep"})
    for epoch in (seen.steps[:2], seen.steps[2:]):
        rows = np.concatenate([by_hand.rows_of(images) for step in epoch for images in step.images])
        assert sorted(rows) == list(range(by_hand.TRAIN))


@pytest.mark.parametrize(
    "settings", [{}, {"loss.args.label_smoothing": SMOOTHED}, {"data.augment": [{"mixup": {"alpha": 1.0}}]}]
)
def test_the_loss_of_an_evaluation_is_that_of_the_bare_labels(tmp_path, settings):
    result, seen = by_hand.train(tmp_path, settings)
    test_images, labels = by_hand.raw("test")
    images = torch.from_numpy(by_hand.normalised(test_images))
    expected = by_hand.cross_entropy(seen.steps[-1].after, images, by_hand.one_hot(labels))
    [line] = [line for line in metrics(result.folder, "eval") if line["step"] == 5]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The order of the same run without mixing: by step and micro-batch, each image's row and its predecessor's."""
    _, seen = by_hand.train(tmp_path_factory.mktemp("plain"))
    rows = [[by_hand.rows_of(images) for images in step.images] for step in seen.steps]
    return [[(own, np.roll(own, 1)) for own in micro_batches] for micro_batches in rows]


def blend(seen: Tensor, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of `own` in each blended image, by least squares; the images must be blends of these two."""
    mixed, a, b = seen.double().flatten(1).numpy(), own.reshape(len(own), -1), other.reshape(len(own), -1)
    share = ((mixed - b) * (a - b)).sum(1) / np.square(a - b).sum(1)
    np.testing.assert_allclose(mixed, share[:, None] * a + (1 - share[:, None]) * b, atol=1e-5)
    return share


def box(seen: Tensor, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of the pixels that are `own`; the others must be `other`'s, and fill one box."""
    shares = []
    for mixed, a, b in zip(seen.double().numpy(), own, other, strict=True):
        foreign = np.abs(mixed - a).max(axis=0) > 1e-4  # [H, W]
        np.testing.assert_allclose(mixed[:, foreign], b[:, foreign], atol=1e-5)
        rows, columns = (np.flatnonzero(foreign.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            assert foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(1 - foreign.mean())
    return np.array(shares)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("share", [0.0, SMOOTHED])
@pytest.mark.parametrize(("kind", "share_of"), [("mixup", blend), ("cutmix", box)])
def test_mixed_images_are_learned_with_both_labels(tmp_path, pairs, kind, share_of, share, loader):
    result, seen = by_hand.train(
        tmp_path, {"data.augment": [{kind: {"alpha": 1.0}}], "loss.args.label_smoothing": share} | LOADERS[loader]
    )
    images, labels = by_hand.raw()
    images, labels = by_hand.normalised(images), by_hand.one_hot(labels)
    expected, own_label, all_shares = [], [], []
    for step, micro_batches in zip(seen.steps, pairs, strict=True):
        targets, unmixed = [], []
        for mixed, (own, other) in zip(step.images, micro_batches, strict=True):
            shares = share_of(mixed, images[own], images[other])
            targets.append(shares[:, None] * labels[own] + (1 - shares[:, None]) * labels[other])
            unmixed.append(labels[own])
            all_shares.extend(shares)
        whole = torch.cat(step.images)
        for q, found in ((targets, expected), (unmixed, own_label)):
            found.append(by_hand.cross_entropy(step.before, whole, smoothed(np.concatenate(q), share)))
    assert by_hand.losses(result.folder) == pytest.approx(expected, rel=1e-5)
    assert by_hand.losses(result.folder) != pytest.approx(own_label, rel=1e-3)
    assert min(all_shares) < 0.5 < max(all_shares)
    assert len(np.unique(np.round(all_shares, 6))) > 10  # each image has a share of its own


def test_alpha_is_that_of_the_shares_beta_distribution(tmp_path, pairs):
    images = by_hand.normalised(by_hand.raw()[0])
    spread = {}
    for alpha in (0.05, 4.0):
        _, seen = by_hand.train(tmp_path, {"data.augment": [{"mixup": {"alpha": alpha}}]})
        both = zip(seen.steps, pairs, strict=True)
        mixed = [(m, *pair) for step, rows in both for m, pair in zip(step.images, rows, strict=True)]
        shares = np.concatenate([blend(m, images[own], images[other]) for m, own, other in mixed])
        spread[alpha] = np.square(shares - 0.5).mean()
    # The variance of Beta(a, a) is 1 / (8a + 4), and 56 shares are drawn.
    assert spread[0.05] == pytest.approx(1 / 4.4, rel=0.2)
    assert spread[4.0] == pytest.approx(1 / 36, rel=0.5)
