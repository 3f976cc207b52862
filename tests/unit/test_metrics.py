"""Metrics of an evaluation: distcnn's own against scikit-learn, a user's, and what is refused before anything is trained."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score, top_k_accuracy_score
from torch import nn

from distcnn.cli import main
from distcnn.config.schema import Config, EvalConfig
from distcnn.errors import InputError
from distcnn.training.metrics import problems
from distcnn.training.metrics.build import build_metrics
from tests.evaluated import evaluated
from tests.photos import train_model

HERE = "tests.unit.test_metrics"


def margin(found, wanted, *, scale: float = 1.0):
    """Of any names: the true class's logit less the largest."""
    return scale * (found.gather(1, wanted[:, None])[:, 0] - found.amax(dim=1)).sum()


class Histogram(nn.Module):
    """Counts logits in bins."""

    def __init__(self, bins: int = 5):
        super().__init__()
        self.register_buffer("edges", torch.linspace(-2, 2, bins))

    def forward(self, logits, targets):
        return torch.histogram(logits.reshape(-1).cpu(), self.edges.cpu()).hist.reshape(2, -1)

    def result(self, sums):
        assert sums.shape == (2, 2)
        return float(sums.sum())


class Disagreement:
    """Of all outputs at once."""

    def compute(self, logits, targets):
        assert (logits.dtype, targets.dtype) == (np.float32, np.int64)
        return (logits.argmax(1) != targets).mean()


def of_each_image(logits, targets):
    return logits[:, 0]


class PerImage:
    def __call__(self, logits, targets):
        return logits[:, 0]

    def result(self, sums):
        return sums.mean()


class NoResult(PerImage):
    def __call__(self, logits, targets):
        return logits.sum(dim=0)

    def result(self, sums):
        return list(sums)


def a_number(logits, targets):
    return 1.0


def raises(logits, targets):
    raise ValueError("first line\nsecond line")


def metrics(*items, classes=4):
    return build_metrics(EvalConfig(metrics=items), classes, torch.device("cpu"))


def values(items, logits, labels, batch_size=7):
    return dict(evaluated(logits, labels, batch_size, metrics=metrics(*items, classes=logits.shape[1])).metrics)


@pytest.fixture(scope="module")
def guesses():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(61, 6, generator=generator)
    logits[:, 5] = -9  # never predicted
    return logits, torch.randint(4, (61,), generator=generator)  # classes 4 and 5 have no image


def test_our_own_are_those_of_scikit_learn(guesses):
    logits, labels = guesses
    found = values(["f1", {"f1": {"average": "weighted"}}, {"top_k": {"k": 1}}, {"top_k": {"k": 3}}], logits, labels)
    predicted = logits.argmax(1)
    more = {
        f"{kind}_{average}": {"average": average}
        for kind in ("precision", "recall")
        for average in ("macro", "weighted")
    }
    scored = {"precision": precision_score, "recall": recall_score}
    assert values([{key.partition("_")[0]: args} for key, args in more.items()], logits, labels) == {
        key: pytest.approx(scored[key.partition("_")[0]](labels, predicted, **args, zero_division=0))
        for key, args in more.items()
    }
    assert found == {
        "f1": pytest.approx(f1_score(labels, predicted, average="macro")),
        "f1_weighted": pytest.approx(f1_score(labels, predicted, average="weighted")),
        "top_k_1": pytest.approx(float((predicted == labels).double().mean())),
        "top_k_3": pytest.approx(top_k_accuracy_score(labels, logits, k=3, labels=range(6))),
    }
    assert values([{"top_k": {"k": 9}}], logits, labels) == {"top_k_9": 1.0}


@pytest.mark.parametrize("classes", [2, 5])
def test_the_area_under_the_roc_is_that_of_scikit_learn_ties_included(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(-2, 3, (90, classes), generator=generator).float()
    labels = torch.randint(classes, (90,), generator=generator)
    scores = logits.double().softmax(1).numpy()
    expected = roc_auc_score(labels, scores if classes > 2 else scores[:, 1], multi_class="ovr")
    for size in (1, 7, 500):
        assert values(["auroc"], logits, labels, size) == {"auroc": pytest.approx(expected, abs=1e-12)}


def test_without_images_of_two_classes_there_is_no_area():
    assert np.isnan(values(["auroc"], torch.randn(5, 3), torch.ones(5, dtype=torch.int64))["auroc"])


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_its_formula(guesses, bins):
    logits, labels = guesses
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = ((confidence >= low) & (confidence < low + 1 / bins)).numpy()
        if inside.any():
            right = (predicted == labels).double().numpy()[inside]
            expected += inside.mean() * abs(right.mean() - confidence.numpy()[inside].mean())
    found = values([{"calibration_error": {"bins": bins}}], logits, labels)
    assert found == {f"calibration_error_{bins}": pytest.approx(expected)}
    sure = torch.eye(3)[[0, 1, 2]] * 99  # a confidence of 1 is in the last bin
    assert values(["calibration_error"], sure, torch.tensor([0, 1, 2])) == {"calibration_error": pytest.approx(0)}


def test_a_users_function_is_summed_over_all_images_and_divided_by_their_number(guesses):
    logits, labels = guesses
    expected = (logits.double()[range(61), labels] - logits.double().amax(1)).mean().item()
    for size in (1, 7, 61, 500):
        assert values([f"{HERE}:margin"], logits, labels, size) == {"margin": pytest.approx(expected, rel=1e-6)}
    assert values([{f"{HERE}:margin": {"scale": -2}}], logits, labels) == {"margin_-2": pytest.approx(-2 * expected)}


def test_a_users_class_has_sums_of_any_shape_and_makes_its_own_result_of_them(guesses):
    logits, labels = guesses
    inside = ((logits >= -2) & (logits <= 2)).sum().item()
    assert values([f"{HERE}:Histogram"], logits, labels) == {"Histogram": inside}


def test_a_users_class_can_have_all_outputs_at_once(guesses):
    logits, labels = guesses
    found = evaluated(logits, labels, metrics=metrics(f"{HERE}:Disagreement", "f1", classes=6))
    assert found.metrics["Disagreement"] == pytest.approx(1 - found.accuracy)


def test_a_metric_changes_no_bit_of_the_rest(guesses):
    logits, labels = guesses
    alone, beside = (evaluated(logits, labels, 1, metrics=metrics(*items, classes=6)) for items in ([], ["f1"]))
    assert alone.loss_sum == beside.loss_sum
    assert alone.record() == {key: one for key, one in beside.record().items() if key != "f1"}


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            f"{HERE}:of_each_image",
            "of_each_image: should return its sum over the images, a tensor of shape [], not [3] for 3",
        ),
        (f"{HERE}:a_number", "a_number: should return its sum over the images, a tensor of shape [], not float"),
        (f"{HERE}:raises", "raises: ValueError: first line"),
        (
            f"{HERE}:PerImage",
            "PerImage: should return its sum over the images, a tensor of the same shape for any number",
        ),
        (f"{HERE}:NoResult", "NoResult: TypeError: "),
    ],
)
def test_one_that_gives_no_sum_is_refused(item, text):
    with pytest.raises(InputError, match="metrics") as error:
        metrics(item)
    assert text in str(error.value)
    assert "second line" not in str(error.value)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (
            ["topk"],
            "topk: unknown; did you mean top_k? valid: top_k, precision, recall, f1, calibration_error, auroc, or your own package.module:callable",
        ),
        ([{"f1": {"avarage": "macro"}}], "f1: avarage: unknown argument; did you mean average?"),
        ([{"top_k": {"k": 0}}], "top_k: k: should be greater than or equal to 1"),
        (["f1", {"f1": {}}], "two metrics would be named f1 in records"),
        ([f"{HERE}:margin", "tests.unit.more_metrics:margin"], "two metrics would be named margin in records"),
        ([f"{HERE}:accuracy"], "accuracy is part of every evaluation already"),
    ],
)
def test_what_is_wrong_with_the_list_is_said(items, text):
    found = [*problems(Config(eval=EvalConfig(metrics=items)))]
    assert {keys for keys, _ in found} == {("eval.metrics",)}
    assert text in "; ".join(message for _, message in found)


def accuracy(logits, targets):
    return (logits.argmax(1) == targets).sum()


def test_sums_are_added_up_in_doubles():
    logits = torch.zeros(3, 2)
    logits[:, 0] = torch.tensor([2.0**25, 1.0, 1.0])
    found = values([f"{HERE}:first"], logits, torch.zeros(3, dtype=torch.int64), batch_size=1)
    assert found["first"] == np.float64(2**25 + 2) / 3


def first(logits, targets):
    return logits[:, 0].sum()


def undefined(logits, targets):
    return (targets * float("nan")).sum()


def test_one_that_is_not_a_number_is_null_in_json(tmp_path, capsys):
    model = train_model(tmp_path)
    assert main(["evaluate", str(model), "--eval.metrics", f"['{HERE}:undefined', f1]"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    record = json.loads(line, parse_constant=pytest.fail)  # it is called for NaN and Infinity, which are no JSON
    assert record["undefined"] is None
    assert record["f1"] > 0
