"""Exact evaluation against a plain computation."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distcnn.data.samplers import evaluation_batches
from distcnn.training.evaluate import Evaluation, WholeSet, evaluate
from tests.evaluated import CPU, Table, evaluated

ABC = ("a", "b", "c")


@pytest.mark.parametrize("k", [2, 4, 5, 6, 10])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_counts_and_loss_are_those_of_a_plain_computation(n, k):
    generator = torch.Generator().manual_seed(k)
    logits, labels = torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)
    result = evaluated(logits, labels)
    confusion = np.zeros((k, k), np.int64)
    for true, row in zip(labels.tolist(), logits.tolist(), strict=True):
        confusion[true, int(np.argmax(row))] += 1
    places = [sorted(row, reverse=True).index(row[true]) for true, row in zip(labels, logits.tolist(), strict=True)]
    assert result.confusion.dtype == np.int64
    assert np.array_equal(result.confusion, confusion)
    assert (result.total, result.correct) == (n, int((logits.argmax(1) == labels).sum()))
    assert result.top5_correct == sum(place < 5 for place in places)
    assert k > 5 or result.top5_correct == n
    assert result.loss_sum == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="sum").item(), rel=1e-6)
    assert result.best.shape == result.probabilities.shape == (n, min(5, k))
    assert np.array_equal(result.best[:, 0], logits.argmax(1))
    wanted = logits.double().softmax(1).sort(dim=1, descending=True).values[:, :5]
    np.testing.assert_allclose(result.probabilities, wanted, rtol=1e-5)


def test_the_loss_weighs_each_image_once_at_any_batch_size():
    logits, labels = torch.randn(60, 10), torch.randint(10, (60,))
    results = [evaluated(logits, labels, batch_size) for batch_size in (1, 7, 59, 60, 500)]
    assert all(np.array_equal(one.confusion, results[0].confusion) for one in results)
    assert all(one.loss_sum == pytest.approx(results[0].loss_sum, rel=1e-6) for one in results)


def test_the_order_in_which_batches_arrive_changes_no_bit():
    logits, labels = torch.randn(60, 10) * 1e3, torch.randint(10, (60,))
    cut = evaluation_batches(60, 7)
    batches = [(number, torch.tensor(rows), labels[rows.start : rows.stop]) for number, rows in cut]
    names = tuple("abcdefghij")
    sums = {
        evaluate(Table(logits), order, WholeSet(60, 7, names, CPU), nullcontext).loss_sum
        for order in (batches, batches[::-1])
    }
    assert len(sums) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(training):
    model = Table(torch.eye(3)).train(training)
    result = evaluate(model, [(0, torch.arange(3), torch.arange(3))], WholeSet(3, 3, ABC, CPU), nullcontext)
    assert model.training is training
    assert result.accuracy == 1


def test_a_rank_without_batches_gives_zeros():
    result = evaluate(Table(torch.eye(3)), [], WholeSet(4, 2, ABC, CPU), nullcontext)
    assert (result.total, result.correct, result.top5_correct, result.loss_sum) == (0, 0, 0, 0.0)


def test_the_forward_runs_under_autocast_and_counts_in_full_precision():
    model = nn.Linear(4, 3)
    seen = []
    model.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    batches = [(0, torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))]
    evaluate(model, batches, WholeSet(5, 5, ABC, CPU), lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [torch.bfloat16]


def test_a_record_holds_plain_values():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 4]])
    record = Evaluation(confusion, 9, 5.0, ("cat", "dog", "eel"), np.zeros((10, 3), int), np.zeros((10, 3))).record()
    assert record == {
        "correct": 7, "total": 10, "accuracy": 0.7, "top5_correct": 9, "top5_accuracy": 0.9, "loss": 0.5,
        "per_class": {"cat": 0.75, "dog": None, "eel": 4 / 6}, "confusion": confusion.tolist(),
    }  # fmt: skip
    assert {type(record[key]) for key in ("correct", "total", "top5_correct")} == {int}
