"""`distcnn bench step`: the arithmetic of its figures, and the audit of the memory layout. Times are not judged."""

import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from distcnn.bench.measure import PHASES, Stopwatch, alternate, count_flops, gemm_peak, images_per_s, micro_batch_sizes
from tests.benched import CPU, FLOPS, audited, steps_of


@pytest.mark.parametrize("setting", ["--model.compile=false", "--optim.name=muon"])
def test_flops_of_a_step_are_those_of_forward_and_backward(setting):
    steps = steps_of(setting)
    assert count_flops(steps, steps.batches()) == 24 * FLOPS


def test_steps_cover_epoch_after_epoch_and_leave_the_weights():
    steps = steps_of("--optim.weight_decay", "0.1")
    before = [p.clone() for p in steps.run.model.parameters()]
    seconds = steps.seconds(9)  # 4 full batches an epoch
    assert seconds.shape == (9, len(PHASES))
    assert steps.run.loader.sampler.epoch == 2
    assert all(torch.equal(p, q) for p, q in zip(steps.run.model.parameters(), before, strict=True))


def test_every_counted_step_has_its_phases_and_the_loader_and_the_fixed_batch_take_turns(monkeypatch):
    steps = steps_of()
    order = []
    seconds = steps.seconds
    monkeypatch.setattr(
        steps, "seconds", lambda n, fixed=None: order.append((n, fixed is not None)) or seconds(n, fixed)
    )
    loaded, repeated, _ = alternate(steps, steps.batches(), 7, 2)
    assert order == [(2, False), (6, False), (6, True), (3, False), (3, True)]
    assert loaded.shape == repeated.shape == (7, len(PHASES))
    alone = {"gradient sync"}  # nobody to exchange with
    for name, column in zip(PHASES, loaded.T, strict=True):
        assert (column == 0).all() if name in alone else (column > 0).all(), name


def test_a_stopwatch_gives_each_phase_its_time(monkeypatch):
    clock = iter([0, 1, 3, 6, 7, 10, 11, 12, 14])
    monkeypatch.setattr("distcnn.bench.measure.time.perf_counter", lambda: float(next(clock)))
    watch = Stopwatch(CPU)
    for phase in ("data", "forward", "data", "agreement", "data", "backward", "optimizer", "agreement"):
        watch.enter(phase)
    seconds = {name: column.tolist() for name, column in zip(PHASES, watch.seconds().T, strict=True)}
    assert seconds == {
        "data": [1 + 3, 3], "forward": [2, 0], "backward": [0, 1], "gradient sync": [0, 0], "statistics": [0, 0],
        "optimizer": [0, 1], "agreement": [1, 2],
    }  # fmt: skip


def test_rates_are_images_over_whole_steps():
    seconds = torch.tensor([[1.0, 1.0], [3.0, 1.0], [2.0, 3.0]])
    assert vars(images_per_s(seconds, 20)) == {"median": 5.0, "min": 4.0, "max": 10.0, "n": 3}


def test_the_peak_is_that_of_the_best_product(monkeypatch):
    clock = iter([0.0, 0, 9, 13, 13, 15, 15])  # begun; start of a warm-up; start and end of two more; the time so far
    monkeypatch.setattr("distcnn.bench.measure.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out)
    assert gemm_peak(CPU, torch.float32, repeats=2, seconds=100) == 2 * 2048**3 / 2


@pytest.mark.parametrize(
    ("share", "sizes"),
    [(2000, [16, 25, 50, 80, 125, 250, 500, 1000, 2000]), (128, [16, 32, 64, 128]), (12, [12]), (97, [97])],
)
def test_micro_batch_sizes_divide_and_are_apart(share, sizes):
    assert micro_batch_sizes(share) == sizes


class LosesForward(nn.Module):
    def forward(self, x):
        return x.contiguous()


class LosesBackward(nn.Module):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return 2 * x

        @staticmethod
        def backward(_, gradient):
            return (2 * gradient).contiguous()

    def forward(self, x):
        return self.Double.apply(x)


class LosesUnnamed(nn.Module):
    """Between its layers, where no layer is to blame."""

    def __init__(self):
        super().__init__()
        self.gelu = nn.GELU()

    def forward(self, x):
        return self.gelu(x.contiguous())


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (LosesForward(), ["1 (LosesForward), in forward: NHWC becomes NCHW"]),
        (LosesBackward(), ["1 (LosesBackward), in backward: NHWC becomes NCHW"]),
        (LosesUnnamed(), ["before 1.gelu (GELU), in forward: its input is NCHW"]),
        (nn.Identity(), []),
        (nn.Sequential(Permute([0, 2, 3, 1]), nn.LayerNorm(8), nn.Linear(8, 8), Permute([0, 3, 1, 2])), []),
    ],
    ids=["forward", "backward", "between", "none", "permuted"],
)
def test_the_audit_names_the_layer_that_loses_the_layout(layer, said):
    """And neither what comes after it, nor a pooling to 1×1, nor a permutation, which moves nothing."""
    rest = [nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)]
    assert audited(nn.Sequential(nn.Conv2d(3, 8, 3), layer, *rest, nn.Flatten())) == said
