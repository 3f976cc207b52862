"""Batches of data workers, which are processes: those of the loaders without any."""

import numpy as np
import pytest
import torch

from distcnn.data.augment.randaugment import RandAugment
from tests.loaders import ALL, Flip, loader, same

# A worker is a fork of a process that has threads, and more than a small machine's cores: neither matters here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def test_workers_change_nothing_and_serve_several_epochs():
    resident, streaming = loader(None, ALL, rank=1, world=2), loader(2, ALL, rank=1, world=2)
    for epoch, first in ((0, 0), (1, 2), (2, 0)):
        assert all(same(a, b) for a, b in zip(resident.epoch(epoch, first), streaming.epoch(epoch, first), strict=True))


def test_an_epoch_left_early_does_not_disturb_the_next():
    one = loader(2, ALL)
    for batch in one.epoch(0):
        if batch.last:
            break
    assert all(same(a, b) for a, b in zip(loader(None, ALL).epoch(1), one.epoch(1), strict=True))


def test_randaugment_follows_the_place_in_the_epoch_not_the_worker():
    operations = Flip(), RandAugment(2, 15)
    inline, plain = list(loader(0, operations).epoch(1)), list(loader(0, [Flip()]).epoch(1))
    assert all(same(a, b) for a, b in zip(inline, loader(2, operations).epoch(1), strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(inline, plain, strict=True))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert len(list(loader(2, ALL).epoch(0))) == 9
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
