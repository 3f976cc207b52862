"""What a run may continue as: another number of ranks, a changed config, a folder that somebody else trains in."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.long import RARELY
from tests.ranks import run_ranks, start
from tests.records import events, metrics, steps

RECORDS = """
import hashlib, os
from distcnn.models.simple import SimpleCNN

class Records(SimpleCNN):
    "Writes down which images it is trained on."
    def forward(self, x):
        if self.training and x.device.type != "meta":
            with open(f"seen-{os.environ['LIFE']}-{os.environ.get('RANK', 0)}", "a") as file:
                file.writelines(hashlib.sha256(image.numpy().tobytes()).hexdigest() + "\\n" for image in x)
        return super().forward(x)
"""
SAME = ["--checkpoint.resume", "auto"]


@pytest.mark.slow
def test_two_three_and_one_ranks_within_one_epoch(synthetic, tmp_path):
    """Each image of the epoch is trained on once, and the losses are those of a run that nobody has cut."""
    (tmp_path / "records.py").write_text(RECORDS)
    train = ["train", synthetic, "--model.name", "records:Records", "--data.args.train", "720", "--data.augment", "[]",
             "--train.batch_size", "120", "--train.threads", "1",
             *SAME]  # fmt: skip
    for ranks, end in ((2, 2), (3, 4), (1, 6)):
        outcome = run_ranks([*train, "--train.duration", f"{end}step"], ranks, cwd=tmp_path, LIFE=str(end))
        assert outcome.codes == [0] * ranks, outcome.err
    seen = Counter(line for path in tmp_path.glob("seen-*") for line in path.read_text().splitlines())
    assert len(seen) == 720
    assert set(seen.values()) == {1}
    assert [len(list(tmp_path.glob(f"seen-{life}-*"))) for life in (2, 4, 6)] == [2, 3, 1]
    messages = [line["message"] for line in events(tmp_path / "runs" / "tiny")]
    assert ["world_size was 2, is 3" in messages[0], "world_size was 3, is 1" in messages[1]] == [True, True]
    assert run_ranks([*train, "--train.duration", "6step", "--name", "straight"], cwd=tmp_path, LIFE="s").codes == [0]
    losses = [[line["loss"] for line in metrics(tmp_path / "runs" / name, "train")] for name in ("tiny", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_changed_config_is_refused_unless_it_is_meant(synthetic):
    base = ["train", synthetic, "--train.duration", "2step", *SAME]
    assert run_ranks(base).codes == [0]
    changed = ["--train.batch_size", "120", "--seed", "5", "--optim.weight_decay", "0.1", "--data.augment", "flip"]
    outcome = run_ranks([*base, *changed])
    assert outcome.codes == [2]
    for change in (
        "batch_size was 240, is 120",
        "seed was 0, is 5",
        "optim.weight_decay was 0.0, is 0.1",
        "data.augment was [{'crop': {'padding': 2}}, 'flip', {'cutout': {'size': 4}}], is ['flip']",
    ):
        assert change in outcome.err
    assert "allow_changes" not in outcome.err  # a seed is never changed in a run

    further = [*base[:-4], "--train.duration", "4step", *SAME, "--optim.lr", "0.01"]  # longer, which is harmless
    outcome = run_ranks(further)
    assert outcome.codes == [2]
    assert re.search(
        r"optim\.lr was 0\.02, is 0\.01; start a run under another name, or allow the change by --checkpoint",
        outcome.err,
    )
    assert "duration" not in outcome.err
    for allowed in ("[optim.lr]", "[optim]"):
        outcome = run_ranks([*further, "--checkpoint.allow_changes", allowed])
        assert outcome.codes == [0], outcome.err
    assert len(metrics(synthetic.parent / "runs" / "tiny", "train")) == 4


def test_a_folder_that_is_trained_in_is_refused(synthetic, tmp_path):
    train = ["train", synthetic, *RARELY, "--train.duration", "100000step", *SAME]
    with start(train, cwd=tmp_path) as ranks:
        ranks.until(lambda: steps(tmp_path / "runs" / "tiny"))
        outcome = run_ranks(train, 2)
        assert outcome.codes == [2, 2]
        assert outcome.err.count("distcnn: bad input") == 1
        assert f"is in use by process {ranks[0].pid} on {os.uname().nodename}" in outcome.err
        ranks[0].kill()
        ranks.wait()
        # A killed process holds it no longer.
        assert run_ranks(["train", synthetic, *RARELY, "--train.duration", "2step", *SAME]).codes == [0]


def test_checkpoints_by_the_clock(synthetic, tmp_path):
    """Rank 0's clock; all ranks follow at the same step."""
    train = [
        "train",
        synthetic,
        *RARELY,
        "--checkpoint.minutes",
        "0.0001",
        "--checkpoint.keep",
        "99",
        "--train.duration",
        "9step",
    ]
    outcome = run_ranks(train, 2)
    assert outcome.codes == [0, 0], outcome.err
    assert len(list((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*.pt"))) > 2


def test_a_hundred_kills_while_saving(tmp_path):
    """After each, the newest checkpoint loads; what kills leave behind does not grow with their number."""
    outcome = run_ranks([tmp_path / "saves", "100"], program=[Path(__file__).with_name("kill_saves.py")])
    assert outcome.codes == [0], outcome.err
    kills, torn, newest, files = map(int, re.findall(r"\d+", outcome.out))
    assert kills == 100
    assert torn > 5  # many were in the middle of a file
    assert newest > 50
    assert files <= 6  # three steps, the best, and one half-written file of each
