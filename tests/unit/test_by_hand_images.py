"""What the network is given, against the same images augmented by hand; and the masks of its dropout."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import by_hand

SIDE = by_hand.SIDE
LOADERS = {"resident": {}, "streaming": {"data.loader": "streaming", "data.workers": 0}}
FOUR_EPOCHS = {"train.duration": "4ep"}


def epochs(seen: by_hand.Seen) -> list[torch.Tensor]:
    """All images of each epoch, in the order in which they were seen: [N, 3, H, W] each."""
    return [torch.cat([i for step in seen.steps[n : n + 2] for i in step.images]) for n in range(0, len(seen.steps), 2)]


@pytest.fixture(scope="module")
def order(tmp_path_factory) -> list[np.ndarray]:
    """Which images these are, by epoch: what the same run sees without augmentation."""
    _, seen = by_hand.train(tmp_path_factory.mktemp("plain"), FOUR_EPOCHS)
    return [by_hand.rows_of(images) for images in epochs(seen)]


@pytest.fixture(params=LOADERS)
def train(request, tmp_path):
    return lambda settings: by_hand.train(tmp_path, FOUR_EPOCHS | LOADERS[request.param] | settings)[1]


def test_without_augmentation_the_images_are_the_normalised_ones(train):
    images, _ = by_hand.raw()
    seen = epochs(train({}))
    for epoch in seen:
        rows = by_hand.rows_of(epoch)
        np.testing.assert_allclose(epoch.numpy(), by_hand.normalised(images[rows]), atol=1e-5)
        assert sorted(rows) == list(range(by_hand.TRAIN))
    orders = {tuple(by_hand.rows_of(epoch)) for epoch in seen}
    assert len(orders) == 4


def test_mean_and_deviation_are_those_of_the_training_images_unless_they_are_given(train):
    images, _ = by_hand.raw()
    [first, *_] = epochs(train({"data.mean": None, "data.std": None}))
    mean, std = images.mean(axis=(0, 2, 3)) / 255, images.std(axis=(0, 2, 3)) / 255
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    distance = np.abs(first.numpy()[:, None] - expected[None]).max(axis=(2, 3, 4))  # [seen, raw]
    assert distance.min(axis=1).max() < 1e-5
    assert sorted(distance.argmin(axis=1)) == list(range(by_hand.TRAIN))


def test_flip_mirrors_about_half_of_the_images(train, order):
    images, _ = by_hand.raw()
    mirrored = []
    for epoch, rows in zip(epochs(train({"data.augment": ["flip"]})), order, strict=True):
        seen = by_hand.as_bytes(epoch)
        flip = np.array([np.array_equal(one, images[row][..., ::-1]) for one, row in zip(seen, rows, strict=True)])
        assert np.array_equal(seen[~flip], images[rows][~flip])
        mirrored.append(flip)
    assert 0.25 < np.mean(mirrored) < 0.75
    assert len({tuple(flip) for flip in mirrored}) == 4


def test_the_alternating_flip_shows_each_image_the_other_way_round_in_the_next_epoch(train, order):
    images, _ = by_hand.raw()
    mirrored = np.zeros((4, by_hand.TRAIN), bool)
    for number, (epoch, rows) in enumerate(
        zip(epochs(train({"data.augment": [{"flip": {"alternating": True}}]})), order, strict=True)
    ):
        for one, row in zip(by_hand.as_bytes(epoch), rows, strict=True):
            mirrored[number, row] = np.array_equal(one, images[row][..., ::-1])
            assert mirrored[number, row] or np.array_equal(one, images[row])
    assert np.array_equal(mirrored[0], ~mirrored[1])
    assert np.array_equal(mirrored[0], mirrored[2])
    assert 0.2 < mirrored[0].mean() < 0.8


@pytest.mark.parametrize(("mode", "pad"), [("zeros", "constant"), ("reflect", "reflect")])
def test_a_crop_is_a_window_of_the_padded_image(train, order, mode, pad):
    images, _ = by_hand.raw()
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode=pad)
    offsets = set()
    settings = {"data.augment": [{"crop": {"padding": 2, "mode": mode}}]}
    for epoch, rows in zip(epochs(train(settings)), order, strict=True):
        for one, row in zip(by_hand.as_bytes(epoch), rows, strict=True):
            [found] = [
                (down, right)
                for down, right in product(range(5), repeat=2)
                if np.array_equal(one, padded[row][:, down : down + SIDE, right : right + SIDE])
            ]
            offsets.add(found)
    # 88 crops at 25 places: all rows and all columns occur, and nearly all pairs.
    assert {down for down, _ in offsets} == {right for _, right in offsets} == set(range(5))
    assert len(offsets) > 15


def test_cutout_blanks_a_square_that_may_hang_over_the_edge(train, order):
    images, _ = by_hand.raw()
    places = set()
    for epoch, rows in zip(epochs(train({"data.augment": [{"cutout": {"size": 3}}]})), order, strict=True):
        for one, expected in zip(epoch.numpy(), by_hand.normalised(images[rows]), strict=True):
            blank = np.abs(one - expected).max(axis=0) > 1e-4
            assert not one[:, blank].any()  # zeros: the mean colour
            cells = np.argwhere(blank)
            (top, left), (bottom, right) = cells.min(axis=0), cells.max(axis=0) + 1
            for first, end in ((top, bottom), (left, right)):
                assert end - first == 3 or (end - first == 2 and (first == 0 or end == SIDE))
            assert blank[top:bottom, left:right].all()
            places.add((top, left, bottom, right))
    # 88 squares centred on any of 64 pixels; all edges occur.
    assert len(places) > 30
    assert [min(p[i] for p in places) for i in (0, 1)] == [0, 0]
    assert [max(p[i] for p in places) for i in (2, 3)] == [SIDE, SIDE]


def test_all_of_them_at_once(train, order):
    """A window of the padded image or of its mirror image, and a blank square in it."""
    images, _ = by_hand.raw()
    settings = {"data.augment": ["flip", {"crop": {"padding": 2}}, {"cutout": {"size": 3}}]}
    padded = by_hand.normalised(np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))))
    kinds = set()
    for epoch, rows in zip(epochs(train(settings)), order, strict=True):
        for one, row in zip(epoch.numpy(), rows, strict=True):
            wrong = {
                (flip, down, right): (np.abs(one - window[:, down : down + SIDE, right : right + SIDE]) > 1e-4).any(0)
                for flip, window in enumerate((padded[row], padded[row][..., ::-1]))
                for down, right in product(range(5), repeat=2)
            }
            found = min(wrong, key=lambda place: wrong[place].sum())
            assert wrong[found].sum() <= 9
            assert not one[:, wrong[found]].any()
            kinds.add(found)
    assert len(kinds) > 25
    assert {flip for flip, _, _ in kinds} == {0, 1}


def test_progressive_sizes_share_the_steps_before_the_full_one(train, order):
    """Four epochs of two steps: 4×4 for three steps, 6×6 for three, the full 8×8 for two; evaluation at full size."""
    images, _ = by_hand.raw()
    seen = train({"data.augment": [{"progressive_resize": {"sizes": [4, 6], "until": "6step"}}]})
    assert [step.images[0].shape[2:] for step in seen.steps] == [(4, 4)] * 3 + [(6, 6)] * 3 + [(8, 8)] * 2
    assert {found.shape[2:] for _, found in seen.evaluated} == {(8, 8)}
    for epoch, rows in enumerate(order):
        full = torch.from_numpy(by_hand.normalised(images[rows]))
        both = [torch.cat(step.images) for step in seen.steps[2 * epoch : 2 * epoch + 2]]
        for found, large in zip(both, full.split([12, 10]), strict=True):
            small = F.interpolate(large, found.shape[2:], mode="bilinear", antialias=True)
            np.testing.assert_allclose(found.numpy(), small.numpy(), atol=1e-5)


def test_randaugment_changes_the_images_by_its_number_and_strength(tmp_path, order):
    images, _ = by_hand.raw()
    streaming = FOUR_EPOCHS | LOADERS["streaming"]
    changes = {}
    for number, strength in ((1, 0), (1, 15), (3, 15)):
        settings = streaming | {"data.augment": [{"randaugment": {"num": number, "magnitude": strength}}]}
        _, seen = by_hand.train(tmp_path, settings)
        both = zip(epochs(seen), order, strict=True)
        changed = [(by_hand.as_bytes(epoch) != images[row]).mean(axis=(1, 2, 3)) for epoch, row in both]
        changes[number, strength] = float(np.mean(changed))
    assert 0.02 < changes[1, 0] < changes[1, 15] < changes[3, 15]


def test_holdout_and_limits_choose_the_images_that_are_trained(tmp_path):
    _, seen = by_hand.train(tmp_path, {"data.holdout": 6, "train.duration": "2ep"})
    rows = [set(by_hand.rows_of(epoch)) for epoch in epochs(seen)]
    held = {row for _, found in seen.evaluated for row in by_hand.rows_of(found)}
    assert rows[0] == rows[1]
    assert len(held) == 6
    assert held | rows[0] == set(range(by_hand.TRAIN))
    assert not held & rows[0]
    _, seen = by_hand.train(tmp_path, {"data.max_train": 16, "data.max_test": 5, "train.drop_last": True})
    assert [sum(map(len, step.images)) for step in seen.steps] == [12] * 5
    assert {len(found) for _, found in seen.evaluated} == {5}


DROP = 0.4


def masks(tmp_path, **settings) -> list[np.ndarray]:
    """The dropout's mask of each micro-batch, [n, features]."""
    arguments = {"model.args": {"drop": DROP}, **FOUR_EPOCHS, **settings}
    return [mask.numpy() for step in by_hand.train(tmp_path, arguments)[1].steps for mask in step.masks]


def test_dropout_drops_and_scales_what_it_keeps(tmp_path):
    found = np.concatenate(masks(tmp_path))
    np.testing.assert_allclose(np.unique(found), [0, 1 / (1 - DROP)], rtol=1e-6)
    assert np.mean(found == 0) == pytest.approx(DROP, abs=0.1)  # of 528; the standard deviation is 0.02


def test_dropouts_masks_differ_by_position_epoch_and_seed_alone(tmp_path):
    """Micro-batches 0, 1 and 2 of the first step of four epochs, of three seeds: no two masks are alike."""
    runs = [masks(tmp_path, seed=seed) for seed in (0, 1, 2)]
    whole = [mask.tobytes() for run in runs for mask in run if len(mask) == 4]
    assert len(whole) == len(set(whole)) == 3 * 4 * 5
    assert all(np.array_equal(a, b) for a, b in zip(runs[1], masks(tmp_path, seed=1), strict=True))
    augmented = masks(tmp_path, **{"seed": 1, "data.augment": ["flip"], "optim.lr": 0.01})
    assert all(np.array_equal(a, b) for a, b in zip(runs[1], augmented, strict=True))


def test_after_a_resume_dropout_has_the_masks_of_the_whole_run(tmp_path):
    """In the midst of an epoch, and in the next: nothing depends on what was drawn before in the process."""
    whole = masks(tmp_path, **{"name": "whole", "checkpoint.every": "3step", "checkpoint.keep": 9})
    [checkpoint] = (tmp_path / "whole" / "checkpoints").glob("step-*3.pt")
    rest = masks(tmp_path, **{"name": "rest", "checkpoint.resume": str(checkpoint)})
    assert (len(whole), len(rest)) == (24, 15)
    assert all(np.array_equal(a, b) for a, b in zip(whole[9:], rest, strict=True))


def test_the_step_uses_the_masked_features_and_the_evaluation_all(tmp_path):
    _, labels = by_hand.raw()
    result, seen = by_hand.train(tmp_path, {"model.args": {"drop": DROP}})
    for step, found in zip(seen.steps, by_hand.losses(result.folder), strict=True):
        images, mask = torch.cat(step.images).double(), torch.cat(step.masks).double()
        weights = {name: t.double() for name, t in step.before.items()}
        features = F.relu(F.conv2d(images, weights["conv.weight"], weights["conv.bias"], padding=1)).mean((2, 3))
        logits = (features * mask) @ weights["head.weight"].T + weights["head.bias"]
        expected = F.cross_entropy(logits, torch.from_numpy(labels[by_hand.rows_of(images)]))
        assert found == pytest.approx(float(expected), rel=1e-5)
        assert (
            abs(
                float(expected)
                - by_hand.cross_entropy(step.before, images, by_hand.one_hot(labels[by_hand.rows_of(images)]))
            )
            > 1e-5
        )
    test_images, test_labels = by_hand.raw("test")
    images = torch.from_numpy(by_hand.normalised(test_images))
    expected = by_hand.cross_entropy(seen.steps[-1].after, images, by_hand.one_hot(test_labels))
    assert result.evaluation.loss_sum / by_hand.TEST == pytest.approx(expected, rel=1e-5)
