"""A step of each recipe dispatches the operations that operations.txt says; all ranks exchange the same things in turn."""

import pytest
import torch

from tests.golden.operations import IMAGES, PAGE, PHASES, RANKS, RECIPES, count, kept, markdown, release, row, settled


def check(recipe, size, found):
    known, rows = kept()
    (*_, exchanges, mebibytes), golden = row(recipe, size, found), rows[recipe, size]
    operations = found[settled(size) - 1].operations
    tolerance = 0 if known == release() else 0.1  # PyTorch may compose an operation of others
    fix = "if this change is intended, regenerate the table by `python -m tests.golden.operations` and say why"
    for phase, now, before in zip(PHASES, operations.counts.values(), map(int, golden[2:]), strict=False):
        names = dict(operations.names[phase])
        assert now == pytest.approx(before, rel=tolerance), f"{recipe}, {size} ranks, {phase}: {names}; {fix}"
    assert (exchanges, mebibytes) == tuple(golden[-2:]), f"{operations.exchanges}; {fix}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_alone_is_as_many_operations_as_before(recipe):
    found = count(recipe)
    check(recipe, 1, found)
    assert all(torch.isfinite(step.loss) for step in found)


@pytest.mark.parametrize(
    "recipe", [pytest.param(one, marks=pytest.mark.slow) if one == "cifar10_resnet18" else one for one in RECIPES]
)
def test_a_step_as_one_of_many_ranks_is_as_many_operations_and_the_same_exchanges(recipe):
    """An exchange that some ranks leave out is, over NCCL, a hang without a word."""
    first, last = (count(recipe, rank, RANKS) for rank in (0, RANKS - 1))
    check(recipe, RANKS, first)
    check(recipe, RANKS, last)
    for number, (one, other) in enumerate(zip(first, last, strict=True), 1):
        assert one.operations.exchanges == other.operations.exchanges, f"step {number}"
        assert [len(step.shapes) for step in (one, other)] == [1, 1]
    # The epoch ends with two micro-batches: this rank has none of them, and takes part with one that counts nothing.
    assert [step.shapes[0][0] for step in (first[-1], last[-1])] == [IMAGES, IMAGES]
    assert first[-1].loss > 0
    assert last[-1].loss == 0


def test_the_table_is_of_the_recipes_and_the_page_shows_it():
    _, rows = kept()
    assert list(rows) == [(recipe, size) for recipe in RECIPES for size in (1, RANKS)]
    assert markdown(list(rows.values())) in PAGE.read_text()
