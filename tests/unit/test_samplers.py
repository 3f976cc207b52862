"""Who takes which images: each exactly once, the same micro-batches at every world size, resumable at any step."""

import random

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from distcnn.data.samplers import MicroBatchSampler, evaluation_batches

WORLDS = (1, 2, 3, 4, 5)
# (size, batch, micro): even, short last batch, last batch of one image, one batch only, micro larger than the rest
SHAPES = [
    (48, 12, 2),
    (50, 12, 2),
    (49, 12, 3),
    (7, 12, 2),
    (1, 4, 1),
    (100, 60, 7),
    (61, 60, 60),
    (13, 1, 1),
]


def sampler(size, batch, micro, rank=0, world=1, **options):
    return MicroBatchSampler(size, batch_size=batch, micro_batch=micro, rank=rank, world_size=world, **options)


def steps_of(one):
    """This rank's micro-batches, a list a step: `last` closes a step."""
    steps, step = [], []
    for micro in one.micro_batches():
        step.append(micro)
        if micro.last:
            steps.append(step)
            step = []
    assert not step
    return steps


def random_shapes(number):
    rng = random.Random(0)
    for _ in range(number):
        micro = rng.randint(1, 9)
        yield rng.randint(1, 300), micro * rng.randint(1, 12), micro


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_image_once_and_the_same_micro_batches_at_every_world_size(drop_last, shuffle):
    for size, batch, micro in [*SHAPES, *random_shapes(60)]:
        options = {"drop_last": drop_last, "shuffle": shuffle, "seed": 5}
        alone = sampler(size, batch, micro, **options)
        alone.set_epoch(3)
        counted = size // batch * batch if drop_last else size
        order = alone.order().tolist()
        assert sorted(order) == list(range(size))
        assert list(alone) == order[:counted]
        bounds = [sorted((m.start, m.stop) for m in step) for step in steps_of(alone)]
        for world in WORLDS:
            ranks = [sampler(size, batch, micro, rank, world, **options) for rank in range(world)]
            for one in ranks:
                one.set_epoch(3)
            assert sorted(i for one in ranks for i in one) == sorted(order[:counted]), (
                size,
                batch,
                micro,
                world,
            )
            by_rank = [steps_of(one) for one in ranks]
            assert {len(steps) for steps in by_rank} == {alone.steps} == {len(bounds)}
            for number, expected in enumerate(bounds):
                together = [m for steps in by_rank for m in steps[number]]
                assert sorted((m.start, m.stop) for m in together if m.weight) == expected
                assert sum(m.weight for m in together) == pytest.approx(1, abs=1e-12)
                assert all(sum(m.last for m in steps[number]) == 1 for steps in by_rank)
                assert all(len(steps[number]) == 1 for steps in by_rank if not steps[number][0].weight)


def test_a_weight_is_the_part_of_the_global_batch_and_a_dummy_batch_has_none():
    two, three = (steps_of(sampler(26, 24, 4, rank, world=4))[-1] for rank in (0, 1))
    assert [(m.start, m.stop, m.weight) for m in two] == [(24, 26, 1.0)]
    assert [(m.start, m.stop, m.weight) for m in three] == [(24, 26, 0.0)]
    full = steps_of(sampler(26, 24, 4, rank=1, world=4))[0]
    assert [(m.start, m.stop, m.weight) for m in full] == [(4, 8, 4 / 24), (20, 24, 4 / 24)]


def test_micro_batches_are_dealt_in_turn():
    starts = [[m.start for m in sampler(24, 24, 4, rank, world=3).micro_batches()] for rank in range(3)]
    assert starts == [[0, 12], [4, 16], [8, 20]]


def test_the_order_depends_on_seed_and_epoch_only():
    def order(epoch, rank=0, world=1, **options):
        one = sampler(40, 8, 2, rank, world, **options)
        one.set_epoch(epoch)
        return one.order().tolist()

    assert order(0) == order(0, rank=2, world=3)
    torch.manual_seed(99)
    assert order(1) == order(1)
    assert len({tuple(order(epoch, seed=seed)) for epoch in range(50) for seed in range(50)}) == 2500
    assert order(5, shuffle=False) == list(range(40))


@pytest.mark.parametrize("world", WORLDS)
def test_a_start_in_mid_epoch_is_the_tail(world):
    for rank in range(world):
        one = sampler(50, 12, 2, rank, world)
        one.set_epoch(2)
        whole = steps_of(one)
        for first in range(one.steps + 1):
            one.set_epoch(2, first)
            assert steps_of(one) == whole[first:]
            left = [m for step in whole[first:] for m in step if m.weight]
            assert list(one) == [i for m in left for i in one.order()[m.start : m.stop].tolist()]
        one.set_epoch(2)
        assert steps_of(one) == whole


def test_another_world_size_goes_on_with_the_images_that_remain():
    before = [i for rank in range(2) for step in steps_of(sampler(50, 12, 2, rank, 2))[:2] for m in step
              for i in range(m.start, m.stop) if m.weight]  # fmt: skip
    after = []
    for rank in range(5):
        one = sampler(50, 12, 2, rank, 5)
        one.set_epoch(0, first_step=2)
        after += [i for m in one.micro_batches() if m.weight for i in range(m.start, m.stop)]
    assert sorted(before + after) == list(range(50))


@pytest.mark.parametrize("world", WORLDS)
def test_it_is_a_distributed_sampler_whose_length_is_right(world):
    for size, batch, micro in SHAPES:
        for rank in range(world):
            one = sampler(size, batch, micro, rank, world, drop_last=size % 2 == 0)
            assert isinstance(one, DistributedSampler)
            assert len(list(one)) == len(one)
            assert list(one) == list(one)
    assert torch.cat(list(DataLoader(range(50), 4, sampler=sampler(50, 12, 2)))).sort().values.tolist() == list(
        range(50)
    )


@pytest.mark.parametrize("size", [0, 1, 2, 9, 10, 11, 101])
@pytest.mark.parametrize("batch", [1, 10, 500])
def test_evaluation_takes_each_image_once_in_the_same_batches_at_every_world_size(size, batch):
    alone = evaluation_batches(size, batch)
    assert [number for number, _ in alone] == list(range(-(-size // batch)))
    assert [i for _, rows in alone for i in rows] == list(range(size))
    assert all(len(rows) == batch for _, rows in alone[:-1])
    for world in WORLDS:
        dealt = [evaluation_batches(size, batch, rank, world) for rank in range(world)]
        assert sorted((b for one in dealt for b in one), key=lambda b: b[0]) == alone
        assert all(one == alone[rank::world] for rank, one in enumerate(dealt))  # in turn: counts differ by 1 at most
