"""metrics.jsonl, and what the console prints where there is no terminal."""

import io
import json
import math

import pytest
from rich.console import Console

from distcnn.config.plan import Workload, make_plan
from distcnn.config.schema import Config, TrainConfig
from distcnn.tracking.base import Trackers
from distcnn.tracking.console import ConsoleTracker, plan_table
from distcnn.tracking.jsonl import JsonlTracker


def lines(path):
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in
            path.read_text(encoding="utf-8").splitlines()]  # fmt: skip


def train(step, loss=1.0, speed=100.0, epoch=1, lr=0.1):
    return {"kind": "train", "step": step, "epoch": epoch, "loss": loss, "lr": lr, "images_per_s": speed}


def evaluation(step, correct=7, total=10, loss=0.5):
    return {"kind": "eval", "step": step, "epoch": 1, "correct": correct, "total": total, "accuracy": correct / total,
            "loss": loss}  # fmt: skip


def test_each_record_is_a_line_at_once(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    records = [train(1), {"kind": "event", "step": 1, "message": "ä\u2028\n"}]
    for record in records:
        tracker.log(record)
    assert lines(tmp_path / "metrics.jsonl") == records  # before the end: what a killed run leaves
    tracker.finish("done", {})
    assert lines(tmp_path / "metrics.jsonl") == records


def test_what_json_cannot_hold_becomes_null(tmp_path):
    record = {"step": 1, "loss": math.nan, "a": {"b": -math.inf, "c": [1.5, math.inf, {"d": math.nan}]}}
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    try:
        tracker.log(record)
    finally:
        tracker.finish("done", {})
    nulls = {"step": 1, "loss": None, "a": {"b": None, "c": [1.5, None, {"d": None}]}}
    assert lines(tmp_path / "metrics.jsonl") == [nulls]
    assert math.isnan(record["loss"])  # the caller's record is left alone


def test_going_on_drops_what_lies_after_the_step_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [train(step) for step in range(1, 8)]
    whole[5:5] = [evaluation(5), {"kind": "event", "step": 5, "message": "x"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in whole) + '{"kind": "train", "step": 5, "lo')
    tracker = JsonlTracker(path, step=5)
    tracker.log(train(6, loss=2.0))
    tracker.finish("done", {})
    assert lines(path) == [*whole[:7], train(6, loss=2.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_starting_anew_drops_all_that_was_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n5\n[]\n{"no": "step"}\n')
    JsonlTracker(path).finish("done", {})
    assert path.read_text() == ""


WORKLOAD = Workload(parameters=12345, forward_flops=2_000_000, device="cpu", precision="fp32", threads=3)


def plan(images=50, batch=10, duration="3ep", world=1, micro=None):
    config = Config(train=TrainConfig(batch_size=batch, duration=duration, micro_batch=micro))
    return make_plan(config, train_images=images, test_images=10, world_size=world)


def console():
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=200)


def tracker_on(out, plan, start_step=0):
    """A tracker whose plan table, which the constructor prints, has been read already."""
    tracker = ConsoleTracker(plan, plan_table(plan, WORKLOAD, "run", "single"), start_step, out)
    assert f"{plan.steps} ({plan.epochs:g} epochs of 5)" in out.file.getvalue()
    out.file.seek(0)
    out.file.truncate()
    return tracker


def printed(console):
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_one_line_an_epoch_with_its_numbers():
    out = console()
    tracker = tracker_on(out, plan())
    for step in range(1, 16):
        tracker.log(train(step, loss=float(step), speed=100.0 * step, epoch=(step - 1) // 5 + 1, lr=1 / step))
        if step in (5, 15):
            tracker.log(evaluation(step, correct=step, total=20, loss=step / 10))
    first, second, third = (line.split("  eta")[0] for line in printed(out))
    # Losses and speeds are means over the epoch, the rate is that of the last step.
    assert first == "epoch 1/3  step 5  loss 3.0000  test loss 0.5000  accuracy 25.00% (5/20)  lr 0.2  300 img/s"
    assert second == "epoch 2/3  step 10  loss 8.0000  lr 0.1  800 img/s"
    assert third.startswith("epoch 3/3  step 15  loss 13.0000  test loss 1.5000  accuracy 75.00% (15/20)  lr 0.0667")


def test_records_that_arrive_late_and_together_give_the_same_lines():
    """The loop logs every few steps, so an epoch's last steps may come with the next one's first."""
    out = console()
    tracker = tracker_on(out, plan(duration="2ep"))
    for record in [train(step, loss=float(step)) for step in range(1, 11)]:
        tracker.log(record)
    tracker.log(evaluation(10))
    first, second = printed(out)
    assert first.startswith("epoch 1/2  step 5  loss 3.0000  lr 0.1")
    assert second.startswith("epoch 2/2  step 10  loss 8.0000  test loss 0.5000")


def test_a_run_resumed_in_mid_epoch_averages_what_it_saw():
    out = console()
    tracker = tracker_on(out, plan(), 7)
    tracker.log({"kind": "event", "event": "resumed", "step": 7, "message": "at step 7 of 15"})
    for step in (8, 9, 10):
        tracker.log(train(step, loss=float(step)))
    tracker.log(evaluation(10))
    event, line = printed(out)
    assert event == "resumed: at step 7 of 15"
    assert line.startswith("epoch 2/3  step 10  loss 9.0000")


def test_the_final_table_holds_the_summary_as_it_is():
    out = console()
    tracker_on(out, plan()).finish("done", {"accuracy": "70.00% (7 of 10)", "weights": "runs/x[low]:100:"})
    title, *rows = printed(out)
    assert title.startswith("done in 0:00:0")
    assert rows[0].split(maxsplit=1) == ["accuracy", "70.00% (7 of 10)"]
    assert rows[1].split(maxsplit=1) == ["weights", "runs/x[low]:100:"]


def test_the_plan_table_prints_the_arithmetic():
    out = console()
    out.print(plan_table(plan(images=1000, batch=120, duration="2ep", world=3, micro=10), WORKLOAD, "run", "torchrun"))
    text = out.file.getvalue()
    arithmetic = "10 per rank × 3 ranks × 4 accumulated = 120"
    for part in (
        arithmetic,
        "18 (2 epochs of 9)",
        "1,000 for training, 10 for testing",
        "12,345",
        "2.0 M per image forward",
    ):
        assert part in text
    assert text.split()[-1] == "torchrun"


def test_no_trackers_do_nothing_and_several_get_all():
    Trackers().log(train(1))
    Trackers().finish("done", {})

    class Kept:
        def __init__(self):
            self.seen = []

        def log(self, record):
            self.seen.append(record)

        def finish(self, status, summary):
            self.seen.append((status, summary))

    several = Kept(), Kept()
    trackers = Trackers(one for one in several)
    trackers.log(train(1))
    trackers.finish("failed", {"step": 1})
    assert several[0].seen == several[1].seen == [train(1), ("failed", {"step": 1})]


def test_the_line_of_an_evaluation_names_the_users_own_metrics_and_needs_none():
    out = console()
    tracker = tracker_on(out, plan())
    tracker.log({**evaluation(5), "f1": 0.25, "top5_accuracy": 0.9, "per_class": {}, "confusion": [[1]]})
    tracker.log({"kind": "eval", "step": 10, "epoch": 2, "mine": 3})
    first, second = printed(out)
    assert "test loss 0.5000  accuracy 70.00% (7/10)  f1 0.25  lr" in first
    assert "step 10  mine 3  lr" in second
