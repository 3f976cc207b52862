"""What a run records: the slowest rank, too short a grace, the best evaluation, epochs, and a loss that is not finite."""

import time

import pytest
import torch

from distcnn.errors import NonFiniteLossError
from distcnn.training import step_log
from tests import by_hand
from tests.records import metrics


@pytest.mark.parametrize(("busy", "slowest", "spread"), [((0.5, 2.0, 1.0), 1, 3.0), ((6.0, 4.0), 0, 0.5)])
def test_the_slowest_rank_is_the_one_that_was_busy_longest(tmp_path, monkeypatch, busy, slowest, spread):
    """The other ranks' numbers are made up here; tests/distributed has real ranks of which one sleeps."""

    def stacked(own: torch.Tensor) -> torch.Tensor:
        ranks = torch.stack([own, *(torch.zeros_like(own) for _ in busy[1:])])  # this rank has the whole loss
        ranks[:, -1] = torch.tensor(busy)
        return ranks

    alone, _ = by_hand.train(tmp_path)
    assert not {"slowest_rank", "rank_spread"} & metrics(alone.folder, "train")[0].keys()
    monkeypatch.setattr(step_log, "stack_ranks", stacked)
    result, _ = by_hand.train(tmp_path)
    assert [(line["slowest_rank"], line["rank_spread"]) for line in metrics(result.folder, "train")] == [
        (slowest, pytest.approx(spread))
    ] * 5
    assert by_hand.losses(result.folder) == by_hand.losses(alone.folder)


@pytest.mark.parametrize(("grace", "warned"), [(None, False), ("1", True), ("100000", False)])
def test_a_grace_that_is_shorter_than_a_step_and_its_save_is_reported_once(tmp_path, monkeypatch, grace, warned):
    """On a clock that runs a thousand times as fast, a save takes several seconds: its files are forced to the disk."""
    began, real = time.monotonic(), time.monotonic
    if grace is None:
        monkeypatch.delenv("DISTCNN_GRACE", raising=False)
    else:
        monkeypatch.setenv("DISTCNN_GRACE", grace)
    monkeypatch.setattr(time, "monotonic", lambda: began + 1000 * (real() - began))
    result, _ = by_hand.train(tmp_path, {"checkpoint.every": "1step"})
    said = [line["message"] for line in metrics(result.folder, "event") if line["event"] == "short_grace"]
    assert len(said) == warned
    if warned:
        assert "the scheduler ends the job 1 s after its signal" in said[0]


def test_the_best_evaluation_is_the_first_of_the_highest_accuracy(tmp_path):
    settings = {"eval.every": "1step", "train.duration": "12step", "optim.lr": 2.0}
    result, _ = by_hand.train(tmp_path, settings)
    accuracies = [line["accuracy"] for line in metrics(result.folder, "eval")]
    assert len(accuracies) == 12
    assert len(set(accuracies)) > 2
    best = accuracies.index(max(accuracies)) + 1
    assert (result.state.best_accuracy, result.state.best_step) == (max(accuracies), best)
    saved = torch.load(result.folder / "checkpoints" / "best.pt", weights_only=True)["progress"]
    assert (saved["step"], saved["best_step"]) == (best, best)


def test_records_bear_the_epoch_that_they_belong_to(tmp_path):
    """An epoch is two steps here."""
    result, _ = by_hand.train(tmp_path, {"eval.every": "1step"})
    for kind in ("train", "eval"):
        found = [(line["step"], line["epoch"]) for line in metrics(result.folder, kind)]
        assert found == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path):
    with pytest.raises(NonFiniteLossError, match="at step 2 "):
        by_hand.train(tmp_path, {"optim.lr": 1e38, "tracking.log_every": 1})
    (folder,) = (path.parent for path in tmp_path.glob("*/metrics.jsonl"))
    assert [line["step"] for line in metrics(folder, "train")] == [1]
    assert [line["step"] for line in metrics(folder, "event") if line["event"] == "non_finite_loss"] == [2]
    assert not [*folder.glob("checkpoints/*.pt")]
