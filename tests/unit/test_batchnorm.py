"""Running statistics: PyTorch's rule for one micro-batch a step, the mean over all of them for several."""

import pytest
import torch
from torch import nn

from distcnn.errors import InputError
from distcnn.training.batchnorm import RunningStatistics


def network(momentum=0.1):
    torch.manual_seed(0)
    second = nn.BatchNorm2d(5, momentum=0.3, affine=False)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=momentum), nn.Conv2d(4, 5, 1), second).train()


def images(n, step):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(step)) * 2 + step


def statistics(model):
    return [t.clone() for m in model if isinstance(m, nn.BatchNorm2d) for t in (m.running_mean, m.running_var)]


def test_one_micro_batch_a_step_is_pytorchs_own_update():
    plain, ours = network(), network()
    running = RunningStatistics(ours, micro_batches_per_step=2)
    for step in range(4):
        plain(images(6, step))
        ours(images(6, step))
        running.add(1.0)
        running.end()
    for a, b in zip(statistics(plain), statistics(ours), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_nothing_is_touched_where_a_step_is_one_micro_batch():
    plain, ours = network(), network(momentum=0.1)
    running = RunningStatistics(ours, micro_batches_per_step=1)
    for step in range(2):
        plain(images(6, step))
        ours(images(6, step))
        running.add(1.0)
        running.end()
    assert ours[1].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(statistics(plain), statistics(ours), strict=True))
    running.close()
    RunningStatistics(network(momentum=None), micro_batches_per_step=1).close()


def test_several_micro_batches_move_them_once_towards_the_mean_by_share():
    model, shares = network(), (0.4, 0.4, 0.2)
    running = RunningStatistics(model, micro_batches_per_step=3)
    expected = [t.double() for t in statistics(model)]
    for step in range(3):
        parts = [images(n, 10 * step + n) for n in (8, 7, 4)]
        of_each = []
        for part, share in zip(parts, shares, strict=True):
            with torch.no_grad():
                inner = model[0](part)
                normalised = nn.functional.batch_norm(inner, None, None, model[1].weight, model[1].bias, training=True)
                outer = model[2](normalised)
            of_each.append([s.double() for x in (inner, outer) for s in (x.mean((0, 2, 3)), x.var((0, 2, 3)))])
            model(part)
            running.add(share)
        running.end()
        towards = [sum(share * t for share, t in zip(shares, ts, strict=True)) for ts in zip(*of_each, strict=True)]
        momenta = (0.1, 0.1, 0.3, 0.3)
        expected = [(1 - m) * old + m * new for m, old, new in zip(momenta, expected, towards, strict=True)]
        for got, wanted in zip(statistics(model), expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_steps_are_counted_not_forwards():
    model = network()
    for parts in (1, 2, 3):
        running = RunningStatistics(model, micro_batches_per_step=parts)
        for step in range(4):
            for _ in range(parts):
                model(images(6, step))
                running.add(1 / parts)
            running.end()
        running.close()
    assert [m.num_batches_tracked.item() for m in model if isinstance(m, nn.BatchNorm2d)] == [12, 12]


def test_a_frozen_layer_counts_nothing():
    """A user's model may keep a layer in evaluation mode."""
    model = network()
    model[1].eval()
    running = RunningStatistics(model, micro_batches_per_step=2)
    for _ in range(3):
        for _ in range(2):
            model(images(6, 0))
            running.add(0.5)
        running.end()
    assert [model[1].num_batches_tracked, model[3].num_batches_tracked] == [0, 3]


def test_a_layer_without_a_count_is_fine():
    model = network()
    model[1].num_batches_tracked = model[3].num_batches_tracked = None
    running = RunningStatistics(model, micro_batches_per_step=2)
    model(images(6, 0))
    running.add(1.0)
    running.end()


def test_a_dummy_batch_counts_for_nothing():
    model, other = network(), network()
    for one, dummy in ((model, False), (other, True)):
        running = RunningStatistics(one, micro_batches_per_step=2)
        one(images(6, 1))
        running.add(1.0)
        if dummy:
            one(images(6, 99))
            running.add(0.0)
        running.end()
    for a, b in zip(statistics(model), statistics(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert model[1].num_batches_tracked == other[1].num_batches_tracked == 1


def test_close_gives_the_momenta_back_and_ends_it():
    model = network()
    running = RunningStatistics(model, micro_batches_per_step=2)
    assert [model[1].momentum, model[3].momentum] == [1.0, 1.0]
    running.close()
    assert [model[1].momentum, model[3].momentum] == [0.1, 0.3]
    before = statistics(model)
    running.add(1.0)
    running.end()
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_momentum_none_is_refused_when_accumulating():
    with pytest.raises(InputError, match="momentum=None"):
        RunningStatistics(network(momentum=None), micro_batches_per_step=2)


def test_layers_without_running_statistics_and_models_without_layers_are_fine():
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False, momentum=None))
    for model in (bare, nn.Conv2d(3, 4, 1)):
        running = RunningStatistics(model, micro_batches_per_step=2)
        running.add(1.0)
        running.end()
        running.close()
