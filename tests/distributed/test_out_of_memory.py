"""Too little memory on some rank of a real run: one message with what to change, no traceback, and the log holds it."""

import numpy as np
import pytest
from PIL import Image

from tests.ranks import run_ranks, run_torchrun
from tests.records import metrics

GREEDY = '''
import os
import torch
from distcnn.models.simple import SimpleCNN

class Greedy(SimpleCNN):
    """On the ranks of $GREEDY its third forward, in training or in evaluation, finds too little memory."""
    calls = 0
    def forward(self, x):
        mode, _, ranks = os.environ.get("GREEDY", " ").partition(" ")
        if x.device.type != "meta" and self.training == (mode == "train") and os.environ.get("RANK", "0") in ranks:
            self.calls += 1
            if self.calls == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")
        return super().forward(x)
'''
CURE = "train.micro_batch is 20: smaller divisors of each rank's batch are "


@pytest.fixture
def train(synthetic, tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    return ["train", synthetic, "--model.name", "greedy:Greedy", "--data.loader", "streaming"]


def failed(tmp_path):
    """What the log's last event says."""
    (line,) = [line for line in metrics(tmp_path / "runs" / "tiny") if line.get("event") == "failed"]
    return line["message"]


@pytest.mark.parametrize(
    ("ranks", "greedy", "who"), [(1, "0", "0"), (2, "1", "1"), (2, "0", "0"), (2, "01", "[01]")],
    ids=["alone", "one of two", "the first of two", "both"],
)  # fmt: skip
def test_a_training_that_lacks_memory_says_so_once(train, tmp_path, ranks, greedy, who):
    outcome = run_ranks(train, ranks, cwd=tmp_path, GREEDY=f"train {greedy}")
    assert outcome.codes == [1] * ranks, outcome.err
    assert "Traceback" not in outcome.err
    said = outcome.err.splitlines()
    assert said.count("distcnn: out of memory") == 1, outcome.err
    at = said.index("distcnn: out of memory")
    assert said[at + 1].startswith("  rank ")
    assert said[at + 1][7] in who
    assert "ran out of memory on cpu: it asked for 2.00 GiB, " in said[at + 1]
    assert said[at + 2].startswith(f"  {CURE}")
    if greedy != "0" or ranks == 1:  # rank 0 serves the store here: without it rank 1 has only lost contact
        assert "Lost contact" not in outcome.err
    assert failed(tmp_path) == f"OutOfMemoryError: {said[at + 1].strip()}; {said[at + 2].strip()}"


def test_under_torchrun_too(train, tmp_path):
    """Its agent serves the store, and ends the others when one has failed."""
    outcome = run_torchrun(train, 2, cwd=tmp_path, GREEDY="train 1")
    assert outcome.codes == [1]
    assert outcome.err.count("distcnn: out of memory") == 1, outcome.err
    assert f"\n  {CURE}" in outcome.err
    assert "Lost contact" not in outcome.err
    assert "rank 1 on " in failed(tmp_path)


def test_evaluate_and_predict_on_two_ranks(train, tmp_path):
    outcome = run_ranks([*train, "--train.duration", "1step", "--eval.batch_size", "10"], cwd=tmp_path)
    assert outcome.codes == [0], outcome.err
    run = tmp_path / "runs" / "tiny"
    outcome = run_ranks(["evaluate", run], 2, cwd=tmp_path, GREEDY="eval 1")
    assert outcome.codes == [1, 1], outcome.err
    assert outcome.err.count("distcnn: out of memory\n  rank 1 on ") == 1, outcome.err
    assert "\n  it was evaluating, eval.batch_size is 10: 2 gives the same numbers\n" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Lost contact" not in outcome.err
    for name in range(12):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    images = [tmp_path / f"{name}.png" for name in range(12)]
    outcome = run_ranks(["predict", run, *images, "--batch-size", "2"], 2, cwd=tmp_path, GREEDY="eval 1")
    assert outcome.codes == [1, 1], outcome.err
    assert outcome.err.count("distcnn: out of memory\n  rank 1 on ") == 1, outcome.err
    assert "\n  it was predicting 2 images at once: --batch-size 1, or that many per call, needs less\n" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Lost contact" not in outcome.err


def test_bench_says_it_too(train, tmp_path):
    outcome = run_ranks(["bench", "step", *train[1:]], cwd=tmp_path, GREEDY="train 0")
    assert outcome.codes == [1], outcome.err
    assert outcome.err.startswith("distcnn: out of memory\n  rank 0 on ")
    assert f"\n  {CURE}" in outcome.err
