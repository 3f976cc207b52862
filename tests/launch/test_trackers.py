"""TensorBoard, trackio and W&B for real: each holds the numbers of metrics.jsonl, also after a resume."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.offline_wandb import read_offline, read_run, scan
from tests.ranks import clean_environment, run_ranks, start
from tests.records import metrics, steps

ALL = ["--tracking.wandb", "offline", "--tracking.backends", "[wandb, tensorboard, trackio]"]


def in_jsonl(folder):
    """{(step, name): number} of what trackers are given."""
    found = {}
    for line in metrics(folder):
        if line["kind"] == "train":
            keys = line.keys() - {"kind", "step", "epoch"}
            assert keys >= {"loss", "lr", "images_per_s"}
            found |= {(line["step"], f"train/{key}"): line[key] for key in keys}
        if line["kind"] == "eval":
            keys = line.keys() - {"kind", "split", "step", "epoch", "per_class", "confusion"}
            assert keys >= {"loss", "accuracy", "correct", "total", "top5_accuracy"}
            found |= {(line["step"], f"test/{key}"): line[key] for key in keys}
            found |= {(line["step"], f"test/per_class/{name}"): value for name, value in line["per_class"].items()}
    return found


def in_wandb(folder):
    """What the newest offline folder holds."""
    _, history, _ = read_offline(max((folder / "wandb").glob("offline-run-*")))
    return {(row["_step"], key): value for row in history for key, value in row.items()}


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(("train", "test"))]
    return {(e.step, tag): make_ndarray(e.tensor_proto).item() for tag in tags for e in events.Tensors(tag)}


def in_trackio(folder, data, project="distcnn"):
    program = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage\n"
        f"(name,) = [name for name in SQLiteStorage.get_runs({project!r}) if name.startswith({folder.name + '-'!r})]\n"
        f"print(json.dumps(SQLiteStorage.get_logs({project!r}, name)))"
    )
    environment = clean_environment() | {"TRACKIO_DIR": str(data)}
    out = subprocess.run(
        [sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True
    ).stdout
    rows = [(row["step"], key, value) for row in yaml.safe_load(out.splitlines()[-1]) for key, value in row.items()]
    numbers = [row for row in rows if row[1].startswith(("train", "test"))]
    assert len({row[:2] for row in numbers}) == len(numbers)  # nothing twice
    return {(step, key): value for step, key, value in numbers}


def agree(folder, data):
    wanted = in_jsonl(folder)
    for found in (in_wandb(folder), in_tensorboard(folder), in_trackio(folder, data)):
        assert {key: value for key, value in found.items() if key[1].startswith(("train/", "test/"))} == wanted


def test_all_three_hold_the_numbers_of_the_log_to_the_last_digit(synthetic, tmp_path):
    data = tmp_path / "trackio"
    outcome = run_ranks(["train", synthetic, *ALL, "--tracking.group", "g"], 2, TRACKIO_DIR=str(data))
    assert outcome.codes == [0, 0], outcome.err
    assert "trackio" not in outcome.out.lower()  # the console is ours
    agree(tmp_path / "runs" / "tiny", data)


def test_after_a_kill_and_a_resume_there_is_one_run_without_seams(synthetic, tmp_path):
    data, folder = tmp_path / "trackio", tmp_path / "runs" / "tiny"
    arguments = ["train", synthetic, *ALL, "--checkpoint.resume", "auto", "--train.duration", "150ep", "--eval.every", "75ep",
                 "--checkpoint.every", "20step", "--tracking.log_every", "1", "--data.args.train", "40",
                 "--train.batch_size", "40", "--train.threads", "1"]  # fmt: skip
    with start(arguments, TRACKIO_DIR=str(data)) as ranks:
        ranks.until(lambda: steps(folder) >= 50)
        ranks[0].kill()
    outcome = run_ranks(arguments, TRACKIO_DIR=str(data))
    assert outcome.codes == [0], outcome.err
    assert len(in_jsonl(folder)) > 300
    agree(folder, data)
    assert len([*(folder / "wandb").glob("offline-run-*")]) == 2
    assert len([*(folder / "tensorboard").iterdir()]) == 1


def test_no_name_is_a_number_and_a_folder(synthetic, tmp_path):
    outcome = run_ranks(["train", synthetic, "--tracking.backends", "tensorboard"])
    assert outcome.codes == [0], outcome.err
    names = {name for _, name in in_tensorboard(tmp_path / "runs" / "tiny")}
    assert "test/per_class/class0" in names
    assert not [(one, other) for one in names for other in names if other.startswith(f"{one}/")]


def test_wandb_gets_mistakes_model_and_report(synthetic, tmp_path):
    outcome = run_ranks(["train", synthetic, *ALL[:2], "--tracking.group", "trials", "--tracking.report", "true"])
    assert outcome.codes == [0], outcome.err
    folder = tmp_path / "runs" / "tiny"
    (table,) = (folder / "wandb").glob("offline-run-*/files/media/table/mistakes*.table.json")
    rows = yaml.safe_load(table.read_text())
    assert rows["columns"] == ["image", "true", "predicted", "probability", "file"]
    wrong = sum(map(sum, metrics(folder, "eval")[-1]["confusion"])) - metrics(folder, "eval")[-1]["correct"]
    assert len(rows["data"]) == min(wrong, 40)
    (log,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = b"".join(scan(log.read_bytes()))
    assert content.count(b".png") >= len(rows["data"])  # in an artifact of the table
    for text in (b"model.safetensors", b"report.html", b"trials"):
        assert text in content


def test_a_sweep_agents_run_is_the_one_that_the_agent_chose(synthetic, tmp_path):
    """What the agent does with the file's command, without its server."""
    sweep = yaml.safe_load(Path("configs/sweep.yaml").read_text())
    chosen = {
        key: one.get("value", one.get("values", [one.get("min")])[-1] if "values" in one else one.get("min"))
        for key, one in sweep["parameters"].items()
    }
    arguments = [f"--{key}={value}" for key, value in chosen.items()]
    words = [word for word in sweep["command"] if not word.startswith("$")]
    assert words[:4] == ["python", "-m", "distcnn", "train"]
    command = [
        sys.executable,
        *words[1:4],
        str(synthetic),
        *arguments,
        "--train.micro_batch=8",
        "--train.duration=2ep",
        "--tracking.wandb=offline",
    ]
    environment = clean_environment() | {
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_RUN_ID": "chosen12",
        "WANDB_DIR": str(tmp_path),
    }
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "runs").glob("*/wandb/offline-run-*-chosen12")]
    config, history, _ = read_run(next((tmp_path / "runs").iterdir()))
    assert config["optim"]["lr"] == chosen["optim.lr"]
    assert any(sweep["metric"]["name"] in row for row in history)


@pytest.mark.parametrize("library", ["tensorboard", "trackio"])
@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no')", "import time; time.sleep(1e6)"], ids=["raises", "blocks"]
)
def test_a_faulty_library_does_not_touch_the_training(synthetic, tmp_path, library, fault):
    fake = tmp_path / "fake" / library
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(fault + "\n")
    outcome = run_ranks(
        ["train", synthetic, "--tracking.backends", library, "--tracking.timeout", "2"],
        PYTHONPATH=str(fake.parent),
    )
    assert outcome.codes == [0], outcome.err
    assert outcome.err.count(f"warning: {library}") == 1
    assert len(metrics(tmp_path / "runs" / "tiny", "train")) == 6
