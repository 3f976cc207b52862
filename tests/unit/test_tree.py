"""Nested sections and dotted keys are the same settings, written in two ways."""

import pytest

from distcnn.config.keys import KEYS
from distcnn.config.schema import Config, ModelConfig
from distcnn.config.settings import to_dict
from distcnn.config.tree import Change, diff, flatten, unflatten


def test_flat_and_nested_are_the_same_settings():
    tree = to_dict(Config(name="x", model=ModelConfig(args={"width": 4})))
    assert [*flatten(tree)] == KEYS
    assert flatten(tree)["model.args"] == {"width": 4}
    assert unflatten(flatten(tree)) == tree


def test_an_argument_by_itself_is_nested_too():
    assert unflatten({"model.args.width": 4, "seed": 1}) == {"model": {"args": {"width": 4}}, "seed": 1}
    assert unflatten({"data.args.a.b": 4}) == {"data": {"args": {"a.b": 4}}}  # an argument's name is one word


@pytest.mark.parametrize("empty", [{}, {"optim": {}}])
def test_an_empty_section_holds_nothing(empty):
    assert flatten(empty) == {}


def test_changes_are_told_by_their_keys():
    before = {"seed": 1, "optim": {"lr": 0.1, "gone": 1}, "eval": "damaged"}
    now = {"seed": 1, "optim": {"lr": 0.2}, "eval": {"every": "1ep"}}
    assert diff(before, now) == [Change("optim.lr", 0.1, 0.2), Change("eval.every", None, "1ep")]
    assert [str(change) for change in diff(before, now)] == ["optim.lr was 0.1, is 0.2", "eval.every was None, is 1ep"]
    assert diff(now, now) == []


def test_changed_arguments_are_told_one_by_one_and_those_that_are_gone_too():
    before, now = (
        {"optim": {"name": "sgd", "args": args}}
        for args in ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "eps": 1})
    )
    assert diff(before, now) == [
        Change("optim.args.momentum", 0.9, 0.5), Change("optim.args.eps", None, 1), Change("optim.args.nesterov", True, None),
    ]  # fmt: skip
    assert diff(before, {"optim": {"args": {}}}) == [
        Change("optim.args.momentum", 0.9, None), Change("optim.args.nesterov", True, None)
    ]  # fmt: skip
