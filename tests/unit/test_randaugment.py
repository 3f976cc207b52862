"""RandAugment: torchvision's pixels for every operation, drawn by (seed, epoch, position) alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from distcnn.data.augment.randaugment import OPERATIONS, STRONGEST, RandAugment, apply
from tests.loaders import drawn, places


def images(n, size=12):
    smooth = np.random.default_rng(0).integers(0, 256, (n, 3, 3, 3), np.uint8).repeat(size // 3, 1).repeat(size // 3, 2)
    return torch.from_numpy(smooth // 2 + np.random.default_rng(1).integers(0, 99, smooth.shape, np.uint8))


@pytest.mark.parametrize("magnitude", [7, 15, 30])
def test_the_operations_are_those_of_torchvision(magnitude):
    """Whatever its RandAugment makes of an image is made here, and the other way round."""
    image = images(1)[0].permute(2, 0, 1)
    torch.manual_seed(0)
    reference = v2.RandAugment(1, magnitude)
    theirs = {reference(image).numpy().tobytes() for _ in range(400)}
    ours = {apply(name, image[None], sign * magnitude / STRONGEST)[0].numpy().tobytes()
            for name in OPERATIONS for sign in (1, -1)}  # fmt: skip
    assert ours == theirs
    assert len(ours) > 11


def test_images_that_go_together_are_changed_each_by_itself():
    augment, pool = RandAugment(2, 15), images(200)
    draws = drawn(augment, places(200))
    done = augment(pool, draws)
    assert done.dtype == torch.uint8
    assert done.shape == pool.shape
    assert done.is_contiguous()
    for i in range(200):
        one = pool[i].permute(2, 0, 1)[None]
        for number, sign in ((int(draws[f"operation {k}"][i]), int(draws[f"sign {k}"][i])) for k in range(2)):
            one = apply(OPERATIONS[number], one, sign * 0.5)
        assert torch.equal(done[i], one[0].permute(1, 2, 0))


def test_draws_depend_on_the_position_alone_and_are_spread_evenly():
    augment, n = RandAugment(2, 9), 28_000

    def drawn(where):
        draws = augment.draw(where)
        assert [*draws] == ["operation 0", "sign 0", "operation 1", "sign 1"]
        return tuple(np.stack([draws[f"{name} {k}"] for k in range(2)]) for name in ("operation", "sign"))

    operations, signs = drawn(places(n))
    assert operations.shape == signs.shape == (2, n)
    for row in operations:
        assert np.abs(np.bincount(row, minlength=14) / n * 14 - 1).max() < 0.1
    assert abs(np.corrcoef(*operations)[0, 1]) < 0.02
    assert abs(signs.mean()) < 0.02
    part = drawn(places(40, first=50))
    assert (part[0] == operations[:, 50:90]).all()
    assert (part[1] == signs[:, 50:90]).all()
    assert (drawn(places(n, epoch=1))[0] != operations).mean() > 0.9


def test_the_original_is_left_alone():
    pool = images(20)
    before = pool.clone()
    RandAugment(3, 30)(pool, drawn(RandAugment(3, 30), places(20)))
    assert torch.equal(pool, before)
