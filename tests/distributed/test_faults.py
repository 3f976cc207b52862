"""What goes wrong on one rank: all ranks decide together, and what is on the disk is whole."""

import shutil
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.records import metrics

FAULTY = '''
import os
from torch import nn
from distcnn.models.simple import SimpleCNN

class NanOnRankOne(SimpleCNN):
    """Its loss becomes NaN on rank 1 at the fourth update."""
    calls = 0
    def forward(self, x):
        if self.training and x.device.type != "meta":
            self.calls += 1
        bad = os.environ.get("RANK") == "1" and self.calls == 4
        return super().forward(x) * (float("nan") if bad else 1.0)
'''


def test_non_finite_loss_stops_all_ranks_at_that_step(synthetic, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    arguments = ["train", synthetic, "--model.name", "faulty:NanOnRankOne", "--train.micro_batch", "120"]
    # Logged every 5 steps: the NaN of step 4 is found after more steps have run, and is still what is named.
    outcome = run_ranks(
        [*arguments, "--train.duration", "20step", "--tracking.log_every", "5", "--eval.every", "20step",
         "--checkpoint.every", "2step"], 2, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.codes == [1, 1]
    assert "Traceback" not in outcome.err
    assert outcome.err.count("the loss is nan at step 4 (epoch 2) on rank 1, learning rate 0.02") == 1
    folder = tmp_path / "runs" / "tiny"
    assert [line["step"] for line in metrics(folder, "train")] == [1, 2, 3]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000002.pt"]
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize(("ranks", "loader"), [(1, "resident"), (2, "streaming")])
def test_resume_auto_continues_in_mid_epoch_to_the_same_bits(synthetic, tmp_path, ranks, loader):
    """Cut after step 4 of 9, in the middle of the second epoch; the newest checkpoint is damaged as well."""
    common = ["train", synthetic, "--train.duration", "9step", "--checkpoint.every", "2step", "--checkpoint.keep", "9",
              "--optim.name", "adamw", "--optim.lr", "0.001", "--checkpoint.resume", "auto", "--eval.every", "3step",
              "--data.loader", loader]  # fmt: skip
    straight, cut = tmp_path / "runs" / "straight", tmp_path / "runs" / "cut"
    outcome = run_ranks([*common, "--name", "straight"], ranks)
    assert outcome.codes == [0] * ranks, outcome.err

    shutil.copytree(straight, cut)
    for name in ("step-00000009.pt", "step-00000008.pt", "best.pt"):
        (cut / "checkpoints" / name).unlink()
    damaged = cut / "checkpoints" / "step-00000006.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    (cut / "model.safetensors").unlink()
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 99')  # torn by the kill

    outcome = run_ranks([*common, "--name", "cut"], ranks)
    assert outcome.codes == [0] * ranks, outcome.err
    assert "at step 4 of 9" in outcome.out
    assert "step-00000006.pt" in outcome.out  # named as damaged
    assert (cut / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    numbers = [
        [
            {k: v for k, v in line.items() if k not in ("images_per_s", "slowest_rank", "rank_spread")}
            for line in metrics(run)
            if line["kind"] != "event"
        ]
        for run in (straight, cut)
    ]
    assert numbers[0] == numbers[1]


def test_one_gradient_exchange_per_update():
    """Counted in elements, in real processes: 6 accumulated micro-batches, one exchange."""
    outcome = run_ranks([], 2, program=[Path(__file__).with_name("count_exchanges.py")])
    assert outcome.codes == [0, 0], outcome.err
    assert "exchanges per update: [1.0, 1.0, 1.0]" in outcome.out


def test_bfloat16_ranks_that_begin_differently_take_rank_0s_masters():
    outcome = run_ranks([], 2, program=[Path(__file__).with_name("masters.py")])
    assert outcome.codes == [0, 0], outcome.err
    assert outcome.out.strip() == "the same 0"  # and none of gloo's threads left: one may abort the process at its end
