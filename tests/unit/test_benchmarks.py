"""What the benchmarks make of given numbers; nothing is measured here."""

import json
import sys
from itertools import count

import pytest
import torch

from benchmarks import overhead, pipeline, report, trials
from benchmarks.clock import StepClock

RATES = {"plain fp32": [100.0, 50.0, 200.0], "plain bf16": [300.0, 90.0, 700.0], "distcnn bf16": [200.0, 150.0, 400.0]}


def test_ratios_are_taken_within_a_round():
    assert trials.ratios(RATES["distcnn bf16"], RATES["plain fp32"]) == [2, 3, 2]
    assert trials.spread([1234.5, 2.0, 20.0]) == "20 (2 to 1,234)"


def test_a_trial_sees_no_cluster(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "SLURM_NTASKS" not in trials.environment()
    assert trials.environment()["OMP_NUM_THREADS"] == f"{trials.THREADS}"


def test_the_table_has_medians_spreads_and_ratios():
    lines = report.rate_table(RATES, report.LABELS).splitlines()
    assert lines[0] == "|  | images/s | distcnn, bf16 ÷ it |"
    assert lines[2] == "| plain loop, fp32 | 100 (50 to 200) | 2.00 (2.00 to 3.00) |"
    assert lines[4] == "| distcnn, bf16 | 200 (150 to 400) | 1.00 (1.00 to 1.00) |"


def test_the_page_says_where_we_lose():
    # Round by round 0.67, 1.67 and 0.57: lost in the middle, though not in every round.
    tuned = "plain loop, bf16 autocast, channels_last, fused optimizer"
    assert report.losses(RATES, report.LABELS) == f"Where distcnn loses: distcnn, bf16 to {tuned} (0.67 ×).\n"
    both = RATES | {"distcnn fp32": [90.0, 50.0, 180.0]}  # loses to fp32 too; is not held against bf16
    assert "; distcnn, fp32 to plain loop, fp32 (0.90 ×).\n" in report.losses(both, report.LABELS)
    assert report.losses(both, report.LABELS).count("×") == 2
    assert "nowhere" in report.losses({"plain fp32": [1.0], "distcnn fp32": [2.0]}, report.LABELS)


def test_each_part_keeps_how_it_was_made(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    found = {"steps": 60, "settings": {"bf16": {"train.micro_batch": 128}}, "workers": 2, "probe": {"2": [3.0]}}
    monkeypatch.setattr(sys, "argv", ["peers", "/some/where", "--steps", "60"])
    trials.keep(path, "peers", "simple_cnn", {**found, "images_per_s": RATES}, "/some/where")
    monkeypatch.setattr(sys, "argv", ["overhead", "/some/where", "--n", "2"])
    seconds = {"on": [10.2, 20.0], "off": [10.0, 19.0]}
    saving = {"blocks": 2, "block": 20, "held_s": [0.25, 0.35], "beside_s": [1.0, 1.2], "steps_s": seconds}
    trials.keep(path, "overhead", "saving", saving, "/some/where")
    starts = {"seconds": {"distcnn": [3.0], "plain": [2.0], "help": [0.1]}}
    trials.keep(path, "overhead", "startup", starts, "/some/where")
    page = report.text(json.loads(path.read_text()))
    assert "`python -m benchmarks.peers DIR --steps 60`, n = 3," in page
    assert "`python -m benchmarks.overhead DIR --n 2`, n = 2," in page
    assert "`train.micro_batch: 128`" in page
    assert "| 3.6 (2.0 to 5.3) |" in page
    assert "held up for 0.30 (0.25 to 0.35) s, and 1.10 (1.00 to 1.20) s" in page
    assert "| ratio | 1.50 (1.50 to 1.50) |" in page
    assert "/some/where" not in path.read_text()


def test_what_is_on_for_a_block_holds_one_save_in_its_middle():
    turns = [overhead.turn(step, block=97) for step in range(48, 48 + 4 * 97)]
    assert [turns[i * 97] for i in range(4)] == ["on", "off", "off", "on"]
    assert all(len(set(turns[i * 97 : (i + 1) * 97])) == 1 for i in range(4))  # saved at 97, 194, …: halfway
    assert overhead.turn(0, block=97) == overhead.turn(47, block=97) == "on"


def test_the_clock_counts_whole_steps_after_the_warm_up():
    clock = StepClock()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for _ in range(4):
        optimizer.step()
    clock.times = [time - time + i**2 for i, time in enumerate(clock.times)]
    assert clock.seconds(warmup=2, steps=2) == 9 - 1
    with pytest.raises(RuntimeError, match=r"4 optimizer steps were seen, not 2 \+ 3"):
        clock.seconds(warmup=2, steps=3)


def test_the_pipeline_is_timed_over_whole_batches_after_its_warm_up():
    seconds = count(0, 0.5)
    rate = pipeline.images_per_s(iter([torch.zeros(10)] * 99), 2, lambda: next(seconds))
    assert rate == pytest.approx(10 * 4 / 2.5)
