"""`distcnn bench step` as a command, on ranks, and of compiled and built-in models. Times are not judged."""

import json

import psutil
import pytest

from distcnn.bench.measure import PHASES, Steps, count_flops
from distcnn.config.settings import Settings
from distcnn.distributed.world import World
from distcnn.models import MODELS
from distcnn.models.build import build_model
from distcnn.training.run import Run
from tests.benched import FLOPS, audited, steps_of
from tests.ranks import run_ranks, run_torchrun


@pytest.mark.parametrize("setting", ["--model.compile=true"])
def test_flops_of_a_step_are_those_of_forward_and_backward(setting):
    steps = steps_of(setting)
    assert count_flops(steps, steps.batches()) == 24 * FLOPS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS.builtin)
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
    steps = Steps(Run(config, World()))
    assert found["step_flops"] == count_flops(steps, steps.batches())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--steps", "0", "--warmup", "-1", "--optim.lrr", "1"],
            ["--steps 0", "--warmup -1: should be 0 or more", "did you mean optim.lr?"],
        ),
        (["--train.batch_size", "501", "--train.micro_batch", "1"], ["500 training images do not fill one"]),
        (["--micro-batches", "--model.compile", "true"], ["--micro-batches", "compiled again"]),
        (["--steps", "many"], ["--steps many: should be a whole number, 1 or more"]),
    ],
)
def test_bad_input(synthetic, arguments, said):
    outcome = run_ranks(["bench", "step", synthetic, *arguments])
    assert outcome.codes == [2], outcome.err
    assert all(text in outcome.err for text in said), outcome.err
    assert "Traceback" not in outcome.err
