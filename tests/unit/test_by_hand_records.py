"""What a run says of its pace: the slowest rank, and whether a scheduler's grace is too short for a step and its save."""

import time

import pytest
import torch

from distcnn.training import loop
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
    monkeypatch.setattr(loop, "stack_ranks", stacked)
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
