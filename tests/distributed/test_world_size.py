"""Promises 2 to 4: the run, and every evaluation, is the same at every world size."""

import json

import pytest

from tests.ranks import run_ranks, run_torchrun
from tests.records import metrics

RESNET = ["--model.name", "resnet9", "--model.args", "{width: 8}"]


def relative(a, b):
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("model", [[], RESNET], ids=["simple_cnn", "resnet9"])
def test_losses_agree_at_1_to_4_ranks(synthetic, tmp_path, model):
    """Augmentation on, short last windows included: 500 images make steps of 240, 240 and 20 = one micro-batch."""
    curves, evaluations = [], []
    for ranks in (1, 2, 3, 4):
        # One thread everywhere: a convolution's own sums depend on their number.
        fixed = ["--train.duration", "50step", "--train.threads", "1"]
        arguments = ["train", synthetic, *fixed, "--name", f"r{ranks}", *model]
        outcome = run_ranks([*arguments, "--eval.every", "17step"], ranks)
        assert outcome.codes == [0] * ranks, outcome.err
        curves.append([line["loss"] for line in metrics(tmp_path / "runs" / f"r{ranks}", "train")])
        evaluations.append([line["loss"] for line in metrics(tmp_path / "runs" / f"r{ranks}", "eval")])
    assert len(curves[0]) == 50
    for curve, evaluation in zip(curves[1:], evaluations[1:], strict=True):
        assert relative(curves[0], curve) < 1e-6  # gradients are summed in float64: no drift over the steps
        # Running statistics do not depend on the ranks either, so neither does what evaluation sees.
        assert relative(evaluations[0], evaluation) < 1e-6


SPEEDRUN = [
    "--model.name", "whitened_cnn", "--model.args", "{widths: [8, 16, 16]}", "--optim.name", "muon", "--optim.lr", "0.1",
    "--optim.head_lr", "20", "--optim.bias_lr", "5", "--optim.args.fixed_norm", "true", "--optim.weight_decay", "0.1",
    "--train.precision", "bf16-master", "--train.ema", "0.9", "--train.lookahead", "2", "--eval.views", "crops",
    "--data.holdout", "50",
]  # fmt: skip


def test_the_speed_runs_parts_agree_at_every_world_size_and_after_a_resume(synthetic, tmp_path):
    """bfloat16 gradients are summed exactly, so that even their rounding is the same on 1, 2 and 3 ranks."""
    train = ["train", synthetic, *SPEEDRUN, "--train.threads", "1", "--checkpoint.resume", "auto"]
    for ranks in (1, 2, 3):
        outcome = run_ranks([*train, "--name", f"r{ranks}"], ranks)
        assert outcome.codes == [0] * ranks, outcome.err
    for duration in ("2step", "2ep"):  # Lookahead moves at its end too: the cut is where it moves anyway
        assert run_ranks([*train, "--name", "cut", "--train.duration", duration], 2).codes == [0, 0]
    names = ("r1", "r2", "r3", "cut")
    records = {name: metrics(tmp_path / "runs" / name, "eval") for name in names}
    curves = {name: [line["loss"] for line in metrics(tmp_path / "runs" / name, "train")] for name in names}
    for name in ("r2", "r3"):
        assert relative(curves["r1"], curves[name]) < 1e-6
        assert records[name][-1]["confusion"] == records["r1"][-1]["confusion"]
    assert records["r1"][-1]["split"] == "holdout"
    assert records["r1"][-1]["total"] == 50
    assert curves["cut"] == curves["r2"]
    weights = [(tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in ("cut", "r2")]
    assert weights[0] == weights[1]
    outcome = run_ranks(["evaluate", tmp_path / "runs" / "r2", "--train.threads", "1"])
    assert json.loads(outcome.out.splitlines()[-1])["confusion"] == records["r2"][-1]["confusion"]


def test_accumulated_micro_batches_equal_one_large_batch(synthetic, tmp_path):
    curves = []
    for micro in (20, 240):
        name = f"micro{micro}"
        outcome = run_ranks(["train", synthetic, "--name", name, "--train.micro_batch", str(micro)])
        assert outcome.codes == [0], outcome.err
        curves.append([line["loss"] for line in metrics(tmp_path / "runs" / name, "train")])
    assert len(curves[0]) == 6
    assert relative(*curves) < 1e-5


def test_fewer_images_than_ranks(synthetic, tmp_path):
    """Three images on four ranks: one trains and evaluates nothing, and all the others' numbers are as on one."""
    small = [
        "--data.max_train",
        "3",
        "--data.max_test",
        "3",
        "--train.batch_size",
        "4",
        "--train.micro_batch",
        "1",
    ]
    for ranks in (1, 4):
        outcome = run_ranks(["train", synthetic, *small, *RESNET, "--name", f"r{ranks}"], ranks)
        assert outcome.codes == [0] * ranks, outcome.err
    one, four = (
        [line for line in metrics(tmp_path / "runs" / f"r{ranks}") if line["kind"] != "event"] for ranks in (1, 4)
    )
    assert [line["kind"] for line in one] == [line["kind"] for line in four] == ["train", "eval"] * 2
    assert relative([line["loss"] for line in one], [line["loss"] for line in four]) < 1e-4
    assert [line["total"] for line in four if line["kind"] == "eval"] == [3, 3]


@pytest.mark.slow
def test_evaluation_counts_are_identical_at_every_world_size(synthetic, tmp_path):
    """The whole record, loss included, is the same to the bit; also with fewer images than ranks."""
    assert run_ranks(["train", synthetic, *RESNET]).codes == [0]
    reported = metrics(tmp_path / "runs" / "tiny", "eval")[-1]
    (tmp_path / "mine.py").write_text("def largest(logits, targets):\n    return (logits.amax(1) / 3).sum()\n")
    for size in ([], [1001], [7], [3]):
        records = []
        for ranks in (1, 2, 3, 4):
            override = ["--data.args.test", str(*size)] if size else []
            # Small batches, so that most ranks have several; one thread, as with several ranks.
            fixed = ["--eval.batch_size", "37", "--train.threads", "1"]
            own = ["--eval.metrics", "[mine:largest, f1, auroc, calibration_error, {top_k: {k: 2}}]"]
            arguments = ["evaluate", tmp_path / "runs" / "tiny", *override, *fixed, *own]
            outcome = run_ranks(arguments, ranks, cwd=tmp_path)
            assert outcome.codes == [0] * ranks, outcome.err
            records.append(json.loads(outcome.out.splitlines()[-1]))
        assert all(record == records[0] for record in records[1:])
        assert records[0]["total"] == (size[0] if size else 101)
        assert {"largest", "f1", "auroc", "calibration_error", "top_k_2"} <= records[0].keys()
        if not size:
            assert [records[0][key] for key in ("correct", "total", "confusion")] == [
                reported[key] for key in ("correct", "total", "confusion")
            ]


def test_launchers_give_the_same_bits(synthetic, tmp_path):
    for name, run, ranks in (
        ("plain", run_ranks, 1), ("torchrun1", run_torchrun, 1), ("bare2", run_ranks, 2), ("torchrun2", run_torchrun, 2),
    ):  # fmt: skip
        outcome = run(["train", synthetic, "--name", name, "--train.threads", "1"], ranks)
        assert set(outcome.codes) == {0}, outcome.err
    loss = {name: [line["loss"] for line in metrics(tmp_path / "runs" / name) if line["kind"] != "event"]
            for name in ("plain", "torchrun1", "bare2", "torchrun2")}  # fmt: skip
    assert loss["plain"] == loss["torchrun1"]
    assert loss["bare2"] == loss["torchrun2"]


def test_streaming_and_resident_train_alike(synthetic, tmp_path):
    for loader in ("resident", "streaming"):
        outcome = run_ranks(["train", synthetic, "--data.loader", loader, "--name", loader], 2)
        assert outcome.codes == [0, 0], outcome.err
    curves = [
        [line["loss"] for line in metrics(tmp_path / "runs" / name, "train")] for name in ("resident", "streaming")
    ]
    assert curves[0] == curves[1]
