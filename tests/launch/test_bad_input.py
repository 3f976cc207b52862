"""Promise 9: bad input gives one clear message from one rank, exit code 2, no traceback, no hang, nothing half made."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ranks import run_ranks, run_torchrun


def image_tree(root: Path, classes=("cat", "dog"), splits=("train", "test"), each=4) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


def unreadable(tmp):
    root = image_tree(tmp / "tree")
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    (root / "train" / "dog" / "empty.png").touch()
    return ["--data.source", "folder", "--data.root", root]


def class_missing(tmp):
    root = image_tree(tmp / "tree", ("cat", "dog", "owl"))
    for file in (root / "test" / "owl").iterdir():
        file.unlink()
    (root / "test" / "owl").rmdir()
    return ["--data.source", "folder", "--data.root", root]


def empty_class(tmp):
    root = image_tree(tmp / "tree")
    (root / "test" / "owl").mkdir()
    (root / "train" / "owl").mkdir()
    return ["--data.source", "folder", "--data.root", root]


def output_under_a_file(tmp):
    (tmp / "file").touch()
    return ["--output_dir", tmp / "file" / "runs"]


def bad_yaml(tmp):
    (tmp / "tiny.yaml").write_text("train: {batch_size: 8\nmodel: [")
    return []


def foreign_checkpoint(tmp):
    (tmp / "x.pt").write_text("not a checkpoint")
    return ["--checkpoint.resume", tmp / "x.pt"]


# name → (arguments, or a function of the test's folder that gives them; what the message must say)
CASES = {
    "typo in a key": (["--optim.lrr", "0.1"], ["optim.lrr", "command line", "did you mean optim.lr?"]),
    "unknown section": (["--optimizer.lr", "0.1"], ["optimizer.lr", "did you mean optim.lr?"]),
    "not a number": (["--optim.lr", "fast"], ["optim.lr = fast", "valid number"]),
    "out of range": (["--optim.args.momentum", "1.5"], ["optim.args.momentum = 1.5", "less than 1"]),
    "not a choice": (["--optim.name", "sgdm"], ["optim.name = sgdm", "did you mean sgd", "sgd, adam, adamw, muon"]),
    "duration without unit": (["--train.duration", "10"], ["train.duration = 10", "10ep"]),
    "fp16 on the CPU": (["--train.precision", "fp16", "--train.device", "cpu"], ["fp16 needs CUDA", "bf16 or fp32"]),
    "batch does not divide": (["--train.batch_size", "250"], ["250", "micro-batches of 20", "240"]),
    "sync_batchnorm on the CPU": (["--model.sync_batchnorm", "true", "--train.device", "cpu"], ["needs CUDA"]),
    "mean without std": (["--data.mean", "[0.5,0.5,0.5]"], ["data.mean", "both or neither"]),
    "step schedule without steps": (["--schedule.name", "step"], ["schedule.args.milestones", "5ep"]),
    "warm-up longer than training": (["--schedule.warmup", "9ep"], ["schedule.warmup = 9ep", "leaves none"]),
    "value missing": (["--optim.lr"], ["optim.lr", "needs a value"]),
    "unknown model": (["--model.name", "resnet19"], ["model.name = resnet19", "resnet18"]),
    "model module missing": (["--model.name", "nowhere.net:Net"], ["nowhere.net:Net", "No module named"]),
    "wrong model argument": (["--model.args", "{depth: 3}"], ["model.args.depth = 3", "simple_cnn takes none"]),
    "image too small for the model": (["--model.name", "alexnet"], ["alexnet", "cannot take [N, 3, 16×16]"]),
    "folder missing": (["--data.source", "folder", "--data.root", "/no/such"], ["data.root = /no/such", "no such folder"]),
    "unreadable images": (unreadable, ["broken.jpg: not readable", "empty.png: not readable"]),
    "class missing from test": (class_missing, ["class owl is in the training images, but not in the test images"]),
    "empty class": (empty_class, ["owl: no images of this class"]),
    "more images than there are": (["--data.max_test", "5000"], ["data.max_test = 5000", "only 101"]),
    "empty epoch": (["--train.drop_last", "true", "--data.max_train", "100"], ["drop_last", "100 training images"]),
    "unwritable run folder": (output_under_a_file, ["output_dir", "is not a folder"]),
    "not YAML": (bad_yaml, ["tiny.yaml", "not readable as YAML"]),
    "checkpoint missing": (["--checkpoint.resume", "/no/such.pt"], ["checkpoint.resume = /no/such.pt", "no such file"]),
    "not a checkpoint": (foreign_checkpoint, ["x.pt", "not a checkpoint"]),
    "GPU that is not there": (["--train.device", "cuda"], ["train.device = cuda", "no CUDA device"]),
    "no W&B key": (["--tracking.wandb", "online"], ["tracking.wandb = online", "no API key"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bad_input(synthetic, tmp_path, name):
    arguments, expected = CASES[name]
    arguments = arguments(tmp_path) if callable(arguments) else arguments
    cache = tmp_path / "cache"

    def run(ranks):
        environment = {"DISTCNN_CACHE": str(cache), "HOME": str(tmp_path)}
        return run_ranks(["train", synthetic, *arguments], ranks, cwd=tmp_path, **environment)

    with ThreadPoolExecutor() as pool:  # at the same time: most of it is waiting
        outcomes = list(pool.map(run, (1, 2)))
    for ranks, outcome in zip((1, 2), outcomes, strict=True):
        assert outcome.codes == [2] * ranks, outcome.err
        assert outcome.err.count("distcnn: bad input") == 1
        assert "Traceback" not in outcome.err
        for text in expected:
            assert text in outcome.err, outcome.err
    assert not (tmp_path / "runs").exists()
    assert not list(cache.glob("*/")) or name == "class missing from test"


def test_all_problems_are_reported_at_once(synthetic, tmp_path):
    wrong = [
        "--optim.lrr",
        "1",
        "--optim.args.momentum",
        "2",
        "--train.batch_size",
        "250",
        "--model.name",
        "resnet19",
    ]
    outcome = run_ranks(["train", synthetic, *wrong, "--data.source", "folder", "--data.root", "/no/such"])
    assert outcome.codes == [2]
    for text in (
        "optim.lrr",
        "optim.args.momentum = 2",
        "batch_size = 250",
        "model.name = resnet19",
        "data.root = /no/such",
    ):
        assert outcome.err.count(text) == 1, outcome.err


def test_under_torchrun_one_rank_speaks_and_each_exits_with_2(synthetic):
    outcome = run_torchrun(["train", synthetic, "--optim.lrr", "0.1"], 2)
    assert outcome.err.count("did you mean optim.lr?") == 1
    assert "exitcode  : 2" in outcome.err
    assert outcome.err.count("Traceback") == 1  # torchrun's own, about the exit codes


@pytest.mark.parametrize("path", ["/no/such/run", "."])
def test_evaluate_without_a_checkpoint(tmp_path, path):
    outcome = run_ranks(["evaluate", path], cwd=tmp_path)
    assert outcome.codes == [2]
    assert "no such run folder" in outcome.err or "holds no valid checkpoint" in outcome.err


def test_half_an_environment_is_refused(synthetic):
    outcome = run_ranks(["train", synthetic], RANK="0", WORLD_SIZE="2")
    assert outcome.codes == [2]
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        assert f"{name} is not set" in outcome.err
