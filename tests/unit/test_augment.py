"""Augmentation: the pixels of torchvision, from draws that depend on (seed, epoch, position) alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from distcnn.data.augment.crop import Crop
from distcnn.data.augment.cutout import Cutout
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.keyed import keyed, uniform
from tests.loaders import drawn, places

HEIGHT, WIDTH = 9, 7  # not square: a mixed-up axis shows


def images(n=12, height=HEIGHT, width=WIDTH):
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (n, height, width, 3), np.uint8))


def one_by_one(operations, pictures, draws):
    """With torchvision's functions, one operation after the other: mirror; pad and crop."""
    done = []
    for i, image in enumerate(pictures.permute(0, 3, 1, 2)):
        for one, draw in zip(operations, draws, strict=True):
            if isinstance(one, Flip):
                image = V.horizontal_flip(image) if draw["mirrored"][i] else image
            else:
                pad, mode = one.padding, {"zeros": "constant", "reflect": "reflect"}[one.mode]
                image = V.pad(image, [pad] * 4, padding_mode=mode)
                image = V.crop(image, pad + int(draw["down"][i]), pad + int(draw["right"][i]), HEIGHT, WIDTH)
        done.append(image)
    return torch.stack(done).permute(0, 2, 3, 1)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", [1, 3, 6])
@pytest.mark.parametrize("order", ["flip", "crop", "flip crop", "crop flip", "flip crop flip", "crop flip crop"])
def test_a_batch_has_the_pixels_of_torchvision(order, padding, mode):
    """In the order of the list, whichever of them are done together."""
    operations = [Flip() if name == "flip" else Crop(padding, mode) for name in order.split()]
    on_bytes, pool = Pipeline(operations).on_bytes, images(300)
    draws = on_bytes.draw(Places(4, 2, np.arange(300), np.arange(300), HEIGHT, WIDTH))
    batch = on_bytes(pool, draws)
    assert batch.dtype == torch.uint8
    assert torch.equal(batch, one_by_one(operations, pool, on_bytes.unpack(draws)))
    assert not torch.equal(batch, pool)


def test_without_operations_the_images_stay_as_they_are():
    pipeline, pool, labels = Pipeline(), images(), torch.arange(12)
    for part in (pipeline.on_bytes, pipeline.on_floats):
        assert part.draw(places(12)).shape == (0, 12)
    assert pipeline.on_bytes(pool, torch.empty(0, 12)) is pool
    assert pipeline.on_floats(pool.float(), labels, torch.empty(0, 12), 0)[1] is labels
    assert pipeline.sizes == ()


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("order", [(Flip, Crop), (Crop, Flip)])
def test_every_offset_and_mirror_has_the_pixels_of_torchvision(order, mode):
    operations = [Flip() if one is Flip else Crop(2, mode) for one in order]
    rows = [(flip, down, right) for flip in (0, 1) for down in range(-2, 3) for right in range(-2, 3)]
    flip, down, right = torch.tensor(rows).T
    by_name = [{"mirrored": flip} if one is Flip else {"down": down, "right": right} for one in order]
    pool = images(len(rows))
    batch = Pipeline(operations).on_bytes(pool, torch.stack([draw for one in by_name for draw in one.values()]))
    assert torch.equal(batch, one_by_one(operations, pool, by_name))
    moved = batch[rows.index((0, 2, -1))]  # its pixel (r, c) is the image's (r + 2, c - 1)
    assert torch.equal(moved[:-2, 1:], pool[rows.index((0, 2, -1))][2:, :-1])
    assert bool((moved[-2:] == 0).all()) == (mode == "zeros")


def packed(pipeline, where):
    return torch.cat([pipeline.on_bytes.draw(where), pipeline.on_floats.draw(where)])


def test_draws_depend_on_seed_epoch_and_position_alone():
    pipeline = Pipeline([Flip(), Crop(4), Cutout(5)])
    rows, zeros = np.arange(1000), np.zeros(1000, np.int64)

    def draw(seed, epoch, chosen=slice(None), indices=zeros):
        return packed(pipeline, Places(seed, epoch, rows[chosen], indices[chosen], 32, 32)).numpy()

    whole = draw(7, 3)
    assert whole.shape == (5, 1000)
    np.random.seed(0)
    torch.manual_seed(0)
    for chosen in (slice(0, 10), slice(990, 1000), slice(3, 900, 7), slice(None, None, -1)):
        assert np.array_equal(draw(7, 3, chosen, zeros + 1), whole[:, chosen])
    assert draw(7, 3, slice(0, 0)).shape == (5, 0)
    others = [draw(seed, epoch) for seed, epoch in ((7, 4), (8, 3), (3, 7))]
    assert all((other != whole).any(axis=0).mean() > 0.9 for other in others)


def test_draws_are_spread_evenly():
    n = 60_000
    flip, down, right, top, left = packed(
        Pipeline([Flip(), Crop(4), Cutout(5)]), places(n, seed=0, height=32, width=16)
    ).numpy()
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


def test_an_operation_that_stands_twice_draws_twice():
    n = 20_000
    for one, other in ([Cutout(5), Cutout(5)], [Flip(), Flip()]):
        first, second = packed(Pipeline([one, other]), places(n)).numpy()[:: 2 if isinstance(one, Cutout) else 1]
        assert np.array_equal(first, packed(Pipeline([one]), places(n)).numpy()[0])
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_the_alternating_flip_shows_every_image_both_ways_in_two_epochs():
    augment, n = Flip(alternating=True), 10_000

    def flips(epoch, order, seed=3):
        """Of images 0…n-1, drawn in that order."""
        where = Places(seed, epoch, np.arange(n), order, HEIGHT, WIDTH)
        return augment.draw(where)["mirrored"][np.argsort(order)].astype(int)

    rng = np.random.default_rng(0)
    first, second, third, fourth = (flips(epoch, rng.permutation(n)) for epoch in range(4))
    assert abs(first.mean() - 0.5) < 0.02
    assert ((first + second) == 1).all()
    assert (third == first).all()
    assert (fourth == second).all()
    assert 0.45 < (flips(0, np.arange(n), seed=4) == first).mean() < 0.55
    independent = Flip().draw(Places(3, 0, np.arange(n), np.arange(n), HEIGHT, WIDTH))["mirrored"]
    assert 0.45 < (independent == first).mean() < 0.55
    pool, draws = images(20), drawn(augment, places(20))
    assert torch.equal(augment(pool, draws), one_by_one([augment], pool, [draws]))


@pytest.mark.parametrize("side", [1, 4, 5])
def test_the_cutout_is_the_square_at_its_draw_cut_at_the_edges(side):
    augment = Cutout(side)
    draws = drawn(augment, places(200, epoch=1, height=HEIGHT, width=WIDTH))
    mask = augment.mask(draws, HEIGHT, WIDTH)
    assert mask.shape == (200, 1, HEIGHT, WIDTH)
    for one, top, left in zip(mask[:, 0], draws["top"].tolist(), draws["left"].tolist(), strict=True):
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
