"""The list of planted faults fits the code; whether the tests find them is `make mutants`."""

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, mend, plant, problems


def test_every_fault_has_its_line():
    assert problems() == []
    assert len(MUTANTS) >= 40
    assert len({(one.file, one.old, one.new) for one in MUTANTS}) == len(MUTANTS)


def test_a_fault_whose_line_has_gone_is_named():
    assert "0 times" in problems([Mutant("errors.py", "nothing", "no such text", "")])[0]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.file}-{one.fault}"[:60])
def test_a_planted_fault_is_python_and_goes_away_again(mutant, tmp_path):
    path = tmp_path / "distcnn" / mutant.file
    path.parent.mkdir(parents=True)
    mend(mutant, tmp_path)
    plant(mutant, tmp_path)
    whole = (ROOT / "distcnn" / mutant.file).read_text(encoding="utf-8")
    broken = path.read_text(encoding="utf-8")
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(whole))
    mend(mutant, tmp_path)
    assert path.read_text(encoding="utf-8") == whole
