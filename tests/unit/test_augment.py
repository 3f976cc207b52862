"""Augmentation: the pixels of torchvision, from draws that depend on (seed, epoch, position) alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from distcnn.data.augment.pipeline import Augment, Normalize, statistics
from distcnn.data.keyed import keyed, uniform

HEIGHT, WIDTH = 9, 7  # not square: a mixed-up axis shows


def images(n=12, height=HEIGHT, width=WIDTH):
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (n, height, width, 3), np.uint8))


def one_by_one(augment, pictures, draws):
    """With torchvision's functions: pad, crop, mirror."""
    pad, mode = augment.crop_padding, {"zeros": "constant", "reflect": "reflect"}[augment.crop_mode]
    done = []
    for image, (flip, down, right, *_) in zip(pictures.permute(0, 3, 1, 2), draws.tolist(), strict=True):
        if pad:
            image = V.crop(V.pad(image, [pad] * 4, padding_mode=mode), pad + down, pad + right, *image.shape[1:])
        done.append(V.horizontal_flip(image) if flip else image)
    return torch.stack(done).permute(0, 2, 3, 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3, 6])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_batch_has_the_pixels_of_torchvision(flip, padding, mode):
    augment, pool = Augment(flip, padding, mode), images()
    indices = torch.from_numpy(np.random.default_rng(1).integers(0, len(pool), 300))
    draws = augment.draw(4, 2, np.arange(300), np.arange(300), HEIGHT, WIDTH)
    batch = augment.batch(pool[indices], draws)
    assert batch.dtype == torch.uint8
    assert torch.equal(batch, one_by_one(augment, pool[indices], draws))
    assert torch.equal(batch, pool[indices]) == (not flip and padding == 0)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_every_offset_and_mirror_has_the_pixels_of_torchvision(mode):
    augment = Augment(True, 2, mode)
    rows = [(flip, down, right, 0, 0) for flip in (0, 1) for down in range(-2, 3) for right in range(-2, 3)]
    draws = torch.tensor(rows)
    pool = images(len(rows))
    batch = augment.batch(pool, draws)
    assert torch.equal(batch, one_by_one(augment, pool, draws))
    moved = batch[rows.index((0, 2, -1, 0, 0))]  # its pixel (r, c) is the image's (r + 2, c - 1)
    assert torch.equal(moved[:-2, 1:], pool[rows.index((0, 2, -1, 0, 0))][2:, :-1])
    assert bool((moved[-2:] == 0).all()) == (mode == "zeros")


def test_draws_depend_on_seed_epoch_and_position_alone():
    augment = Augment(True, 4, cutout=5)
    places, images = np.arange(1000), np.zeros(1000, np.int64)
    whole = augment.draw(7, 3, places, images, 32, 32)
    assert whole.shape == (1000, 5)
    np.random.seed(0)
    torch.manual_seed(0)
    for rows in (slice(0, 10), slice(990, 1000), slice(3, 900, 7), slice(None, None, -1)):
        assert torch.equal(
            augment.draw(7, 3, places[rows], images[rows] + 1, 32, 32), torch.from_numpy(whole.numpy()[rows].copy())
        )
    assert augment.draw(7, 3, np.arange(0), np.arange(0), 32, 32).shape == (0, 5)
    others = [augment.draw(seed, epoch, places, images, 32, 32) for seed, epoch in ((7, 4), (8, 3), (3, 7))]
    assert all((other != whole).any(dim=1).float().mean() > 0.9 for other in others)


def test_draws_are_spread_evenly():
    n, augment = 60_000, Augment(True, 4, cutout=5)
    flip, down, right, top, left = augment.draw(0, 0, np.arange(n), np.arange(n), 32, 16).T.numpy()
    assert abs(flip.mean() - 0.5) < 0.01
    for offset in (down, right):
        values, counts = np.unique(offset, return_counts=True)
        assert values.tolist() == list(range(-4, 5))  # both ends too
        assert np.abs(counts / n * 9 - 1).max() < 0.05
    for corner, size in ((top, 32), (left, 16)):  # the centre of the square lies anywhere in the image
        values, counts = np.unique(corner + 2, return_counts=True)
        assert values.tolist() == list(range(size))
        assert np.abs(counts / n * size - 1).max() < 0.12
    columns = np.corrcoef([flip, down, right, top, left])
    assert np.abs(columns - np.eye(5)).max() < 0.02
    assert abs(np.corrcoef(down[1:], down[:-1])[0, 1]) < 0.02


def test_neutral_settings_draw_no_change():
    draws = Augment().draw(0, 0, np.arange(50), np.arange(50), HEIGHT, WIDTH)
    assert not draws[:, :3].any()
    assert not Augment().active
    assert all(augment.active for augment in (Augment(flip=True), Augment(crop_padding=1), Augment(cutout=1)))


def test_the_alternating_flip_shows_every_image_both_ways_in_two_epochs():
    augment, n = Augment("alternating"), 10_000

    def flips(epoch, order, seed=3):
        """Of images 0…n-1, drawn in that order."""
        drawn = augment.draw(seed, epoch, np.arange(n), order, HEIGHT, WIDTH)[:, 0].numpy()
        return drawn[np.argsort(order)]

    rng = np.random.default_rng(0)
    first, second, third, fourth = (flips(epoch, rng.permutation(n)) for epoch in range(4))
    assert abs(first.mean() - 0.5) < 0.02
    assert ((first + second) == 1).all()
    assert (third == first).all()
    assert (fourth == second).all()
    assert 0.45 < (flips(0, np.arange(n), seed=4) == first).mean() < 0.55
    independent = Augment(True).draw(3, 0, np.arange(n), np.arange(n), HEIGHT, WIDTH)[:, 0].numpy()
    assert 0.45 < (independent == first).mean() < 0.55
    pool = images(20)
    draws = augment.draw(3, 0, np.arange(20), np.arange(20), HEIGHT, WIDTH)
    assert torch.equal(augment.batch(pool, draws), one_by_one(augment, pool, draws))


@pytest.mark.parametrize("side", [1, 4, 5])
def test_the_cutout_is_the_square_at_its_draw_cut_at_the_edges(side):
    augment = Augment(cutout=side)
    draws = augment.draw(1, 1, np.arange(200), np.arange(200), HEIGHT, WIDTH)
    mask = augment.cutout_mask(draws, HEIGHT, WIDTH)
    assert mask.shape == (200, 1, HEIGHT, WIDTH)
    for one, (*_, top, left) in zip(mask[:, 0], draws.tolist(), strict=True):
        expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = True
        assert torch.equal(one, expected)
        assert one.any()


def test_keyed_is_deterministic_and_well_spread():
    assert keyed(1, 2, 3) == keyed(1, 2, 3)
    assert len({keyed(0, 1), keyed(1, 0), keyed(0), keyed(1), keyed(0, 0), keyed(2**32), keyed(1, 0, 0)}) == 7
    numbers = np.array([keyed(seed, epoch) for seed in range(100) for epoch in range(100)], dtype=np.uint64)
    assert len(set(numbers.tolist())) == 10_000
    assert all(0 <= int(number) < 2**64 for number in numbers)
    bits = (numbers[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.03
    flipped = [bin(keyed(n) ^ keyed(n ^ (1 << bit))).count("1") for n in range(50) for bit in range(64)]
    assert 30 < np.mean(flipped) < 34  # one bit of the key changes half of the number's


def test_uniform_numbers():
    numbers = uniform(keyed(3), np.arange(50_000), 2)
    assert (numbers.min() >= 0, numbers.max() < 1) == (True, True)
    counts, _ = np.histogram(numbers, 20, (0, 1))
    assert np.abs(counts / 2500 - 1).max() < 0.1
    assert abs(np.corrcoef(numbers, uniform(keyed(3), np.arange(50_000), 3))[0, 1]) < 0.02


@pytest.mark.parametrize("n", [1, 511, 513])
def test_statistics_are_those_of_numpy(n):
    pictures = np.random.default_rng(n).integers(0, 256, (n, 4, 5, 3), np.uint8)
    pictures[..., 1] //= 7
    got = statistics(pictures)
    real = pictures.reshape(-1, 3) / 255
    np.testing.assert_allclose(got.mean, real.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.std, real.std(axis=0), rtol=1e-9)


def test_statistics_of_extremes_and_of_a_constant_channel():
    white = np.full((1100, 8, 8, 3), 255, np.uint8)
    white[..., 2] = 77
    assert statistics(white) == Normalize((1.0, 1.0, 77 / 255), (1.0, 1.0, 1.0))
    white[::2, ..., 0] = 0
    assert statistics(white) == Normalize((0.5, 1.0, 77 / 255), (0.5, 1.0, 1.0))


def test_normalize_constants():
    scale, shift = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0)).constants(torch.device("cpu"))
    levels = torch.tensor([0.0, 127.5, 255.0])
    torch.testing.assert_close(levels[:, None] * scale + shift, (levels[:, None] / 255 - torch.tensor([0.5, 0.25, 0])) /
                               torch.tensor([0.5, 0.25, 1]), rtol=0, atol=1e-6)  # fmt: skip
