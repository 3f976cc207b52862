"""Weights & Biases for real, offline; and a wandb that raises or blocks, which must not touch the training."""

import json

import pytest

from tests.offline_wandb import read_run
from tests.ranks import run_ranks
from tests.records import metrics

OFFLINE = ["--tracking.wandb", "offline"]


def test_offline_run_of_four_ranks_holds_config_history_and_confusion(synthetic, tmp_path):
    outcome = run_ranks(["train", synthetic, *OFFLINE], 4)
    assert outcome.codes == [0] * 4, outcome.err
    folder = tmp_path / "runs" / "tiny"
    config, history, exit_code = read_run(folder)  # one run, or unpacking fails
    assert exit_code == 0
    assert config["train"]["batch_size"] == 240
    assert config["plan"]["world_size"] == 4
    losses = {row["_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == {line["step"]: line["loss"] for line in metrics(folder, "train")}
    accuracies = [row["test/accuracy"] for row in history if "test/accuracy" in row]
    assert accuracies == [line["accuracy"] for line in metrics(folder, "eval")]
    (table,) = (folder / "wandb").glob("offline-run-*/files/media/table/*confusion*.table.json")
    cells = json.loads(table.read_text())["data"]
    wanted = metrics(folder, "eval")[-1]["confusion"]
    assert [row[2] for row in cells] == [count for row in wanted for count in row]


@pytest.mark.parametrize(
    "trouble",
    ["raise RuntimeError('no')", "import time; time.sleep(1e6)"],
    ids=["raises", "blocks"],
)
def test_a_faulty_wandb_does_not_touch_the_training(synthetic, tmp_path, trouble):
    fake = tmp_path / "fake" / "wandb"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(
        f"class Settings:\n    def __init__(self, **_): pass\ndef init(**_):\n    {trouble}\n"
    )
    outcome = run_ranks(["train", synthetic, *OFFLINE, "--tracking.timeout", "2"], 2, PYTHONPATH=str(fake.parent))
    assert outcome.codes == [0, 0], outcome.err
    assert outcome.err.count("warning: wandb") == 1
    assert [line["step"] for line in metrics(tmp_path / "runs" / "tiny", "train")] == [1, 2, 3, 4, 5, 6]


def test_the_api_key_is_written_nowhere(synthetic, tmp_path):
    secret = "0123456789abcdef" * 2 + "01234567"  # of the length of a real one
    outcome = run_ranks(
        ["train", synthetic, *OFFLINE, "--train.duration", "2step", "--tracking.timeout", "4"],
        WANDB_API_KEY=secret,
    )
    assert outcome.codes == [0], outcome.err
    assert secret not in outcome.out + outcome.err
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]
