"""A seeded sample of the chaos trials; `make chaos` runs all of them many times."""

import random

import pytest

from tests.chaos import FAULTS, NEEDS_ROOT, Chaos, full_disk
from tests.needs import require

SAMPLE = {full_disk, *random.Random(0).sample(FAULTS, 4)}


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    return Chaos(tmp_path_factory.mktemp("chaos"), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(SAMPLE, key=FAULTS.index), ids=lambda fault: fault.__name__)
def test_after_a_fault_the_run_goes_on_to_the_same_bits(chaos, fault):
    if fault in NEEDS_ROOT:
        require(root=True)
    problem, _ = chaos.trial(FAULTS.index(fault), fault)
    assert not problem
