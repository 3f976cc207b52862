"""`distcnn bench step`: the arithmetic of its figures, and the audit of the memory layout. Times are not judged."""

import json

import psutil
import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from distcnn.build import prepare
from distcnn.models import MODELS, build_model
from distcnn.parallel.signals import StopRequest
from distcnn.parallel.world import World
from distcnn.parse import Settings
from distcnn.tools.layout import layout_audit
from distcnn.tools.measure import PHASES, Steps, Stopwatch, alternate, count_flops, gemm_peak, micro_batch_sizes, rates
from tests.ranks import run_ranks, run_torchrun

CPU = torch.device("cpu")


class TwoConvs(nn.Module):
    """[N, 3, 16, 16] → [N, 10]: a 3×3 convolution to 4 channels, one to 6, a linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean(dim=(2, 3)))


# Multiply-adds of an image. The first layer's backward makes no gradient of the images.
FIRST, SECOND, HEAD = 16 * 16 * 4 * 3 * 9, 16 * 16 * 6 * 4 * 9, 6 * 10
FLOPS = 2 * (2 * FIRST + 3 * SECOND + 3 * HEAD)


def steps_of(*arguments, model=f"{__name__}:TwoConvs"):
    fixed = ["--data.source", "synthetic", "--data.image_size", "16", "--data.synthetic_train", "100"]
    fixed += ["--train.batch_size", "24", "--train.micro_batch", "8", "--train.drop_last", "true"]
    config = Settings().read_arguments([*fixed, "--model.name", model, "--train.threads", "1", *arguments]).check(1)
    return Steps(config, World(), prepare(config, World()), StopRequest())


@pytest.mark.parametrize("setting", ["--model.compile=false", "--model.compile=true", "--optim.name=muon"])
def test_flops_of_a_step_are_those_of_forward_and_backward(setting):
    steps = steps_of(setting)
    assert count_flops(steps, steps.batches()) == 24 * FLOPS


def test_steps_cover_epoch_after_epoch_and_leave_the_weights():
    steps = steps_of("--optim.weight_decay", "0.1")
    before = [p.clone() for p in steps.engine.model.parameters()]
    seconds = steps.run(9)  # 4 full batches an epoch
    assert seconds.shape == (9, len(PHASES))
    assert steps.loader.sampler.epoch == 2
    assert all(torch.equal(p, q) for p, q in zip(steps.engine.model.parameters(), before, strict=True))


def test_every_counted_step_has_its_phases_and_the_loader_and_the_fixed_batch_take_turns(monkeypatch):
    steps = steps_of()
    order = []
    run = steps.run
    monkeypatch.setattr(steps, "run", lambda n, fixed=None: order.append((n, fixed is not None)) or run(n, fixed))
    loaded, repeated, _ = alternate(steps, steps.batches(), 7, 2)
    assert order == [(2, False), (6, False), (6, True), (3, False), (3, True)]
    assert loaded.shape == repeated.shape == (7, len(PHASES))
    alone = {"gradient sync"}  # nobody to exchange with
    for name, column in zip(PHASES, loaded.T, strict=True):
        assert (column == 0).all() if name in alone else (column > 0).all(), name


def test_a_stopwatch_gives_each_phase_its_time(monkeypatch):
    clock = iter([0, 1, 3, 6, 7, 10, 11, 12, 14])
    monkeypatch.setattr("distcnn.tools.measure.time.perf_counter", lambda: float(next(clock)))
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
    assert vars(rates(seconds, 20)) == {"median": 5.0, "min": 4.0, "max": 10.0, "n": 3}


def test_the_peak_is_that_of_the_best_product(monkeypatch):
    clock = iter([0.0, 0, 9, 13, 13, 15, 15])  # begun; start of a warm-up; start and end of two more; the time so far
    monkeypatch.setattr("distcnn.tools.measure.time.perf_counter", lambda: next(clock))
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


def audited(model, precision="fp32", size=32):
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, size, size).to(memory_format=torch.channels_last)
    with layout_audit(model) as lost, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(images).float().square().sum().backward()
    assert not any(layer._forward_hooks for layer in model.modules())
    return lost


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (LosesForward(), ["1 (LosesForward), in forward: NHWC becomes NCHW"]),
        (LosesBackward(), ["1 (LosesBackward), in backward: NHWC becomes NCHW"]),
        (LosesUnnamed(), ["before 1.gelu (GELU), in forward: its input comes as NCHW"]),
        (nn.Identity(), []),
        (nn.Sequential(Permute([0, 2, 3, 1]), nn.LayerNorm(8), nn.Linear(8, 8), Permute([0, 3, 1, 2])), []),
    ],
    ids=["forward", "backward", "between", "none", "permuted"],
)
def test_the_audit_names_the_layer_that_loses_the_layout(layer, said):
    """And neither what comes after it, nor a pooling to 1×1, nor a permutation, which moves nothing."""
    rest = [nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)]
    assert audited(nn.Sequential(nn.Conv2d(3, 8, 3), layer, *rest, nn.Flatten())) == said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_built_in_models_keep_the_layout(name, precision):
    assert audited(build_model(name, 10, 32), precision) == []


def checked(found, *, ranks, images):
    """The figures of a report agree with each other."""
    assert found["ranks"] == ranks
    assert found["micro_batch"] * ranks * found["accumulation"] == found["batch_size"] == images
    assert list(found["phases"]) == list(PHASES)
    assert sum(phase["share"] for phase in found["phases"].values()) == pytest.approx(1)
    total = sum(phase["s"] for phase in found["phases"].values())
    for phase in found["phases"].values():
        assert phase["share"] == pytest.approx(phase["s"] / total)
    for spread in (found["images_per_s"], found["fixed_batch_images_per_s"], *found["micro_batches"].values()):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert images / found["step_s"]["min"] == pytest.approx(found["images_per_s"]["max"])
    rate = found["step_flops"] / images * found["images_per_s"]["median"]
    assert found["utilisation"] == pytest.approx(rate / found["gemm_flops_per_s"][found["precision"]])
    # PyTorch alone takes more than the one, and no process takes the other.
    assert 2**26 < found["peak_memory_bytes"] < psutil.virtual_memory().total
    return found


def test_the_command_prints_tables_and_json_and_writes_nothing(synthetic, tmp_path):
    before = set(tmp_path.iterdir())
    arguments = ["--steps", "3", "--warmup", "1", "--json", "--micro-batches", "--train.threads", "1"]
    outcome = run_ranks(["bench", "step", synthetic, *arguments, "--train.precision", "bf16"], cwd=tmp_path)
    assert outcome.codes == [0], outcome.err
    found = checked(json.loads(outcome.out.splitlines()[-1]), ranks=1, images=240)
    assert found["images_per_s"]["n"] == found["fixed_batch_images_per_s"]["n"] == 3
    assert found["layout_lost"] == []
    assert found["phases"]["gradient sync"]["s"] == 0
    tried = found["micro_batches"]
    assert list(tried) == ["20", "30", "48", "80", "120", "240"]
    assert tried[str(found["fastest_micro_batch"])]["median"] == max(one["median"] for one in tried.values())
    assert f"fastest: --train.micro_batch {found['fastest_micro_batch']}" in outcome.out
    assert "kept by every layer" in outcome.out
    assert set(tmp_path.iterdir()) == before


def test_two_ranks_share_the_work_and_one_speaks(synthetic):
    """resnet9 has gradients and BatchNorm statistics to exchange."""
    model = ["--model.name", "resnet9", "--model.args", "{width: 8}", "--train.threads", "1"]
    outcome = run_torchrun(["bench", "step", synthetic, "--steps", "2", "--json", *model], 2)
    assert outcome.codes == [0], outcome.err
    found = checked(json.loads(outcome.out.splitlines()[-1]), ranks=2, images=240)
    assert found["phases"]["gradient sync"]["s"] > 0
    assert outcome.out.count("images/s") == 1
    config = Settings().read_yaml(synthetic).read_arguments(model).check(1)
    steps = Steps(config, World(), prepare(config, World()), StopRequest())
    assert found["step_flops"] == count_flops(steps, steps.batches())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--steps", "0", "--warmup", "-1", "--optim.lrr", "1"],
            ["--steps 0", "--warmup -1: should be 0 or more", "did you mean optim.lr?"],
        ),
        (["--train.batch_size", "501", "--train.micro_batch", "1"], ["500 training images do not fill one"]),
        (["--micro-batches", "--model.compile", "true"], ["--micro-batches", "compiled anew"]),
        (["--steps", "many"], ["invalid int value: 'many'"]),
    ],
)
def test_bad_input(synthetic, arguments, said):
    outcome = run_ranks(["bench", "step", synthetic, *arguments])
    assert outcome.codes == [2], outcome.err
    assert all(text in outcome.err for text in said), outcome.err
    assert "Traceback" not in outcome.err
