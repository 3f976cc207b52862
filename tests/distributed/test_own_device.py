"""What is wrong with the device of one rank alone is said by that rank, soon, while the others wait for it."""

from pathlib import Path

import pytest

from tests.ranks import run_ranks, torchrun

PROGRAM = [Path(__file__).with_name("own_device.py")]


def under_torchrun(ranks):
    return (*torchrun(ranks)[:-2], *PROGRAM)


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (
            {"FULL": "1"},
            "data.loader = resident: the training images need 379 KiB on each rank's GPU; 1.0 KiB are free",
        ),
        ({"BLIND": "1"}, "no CUDA device is visible; use auto or cpu"),
    ],
    ids=["filled by another process", "not visible"],
)
def test_the_one_rank_that_has_the_problem_speaks(synthetic, tmp_path, who, said):
    code = tmp_path / "code"
    code.touch()
    outcome = run_ranks(
        ["train", synthetic, "--train.device", "cuda"], 1, tmp_path, under_torchrun(2),
        DISTCNN_EXIT_CODE_FILE=str(code), **who,
    )  # fmt: skip
    assert outcome.codes == [1]  # torchrun's
    assert outcome.err.count("distcnn: bad input") == 1, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if said in line]
    assert "rank 1 on " in line
    assert code.read_text() == "2"


def test_where_all_ranks_have_it_rank_0_speaks_for_all(synthetic, tmp_path):
    outcome = run_ranks(["train", synthetic, "--train.device", "cuda"], 1, tmp_path, under_torchrun(3), BLIND="012")
    assert outcome.err.count("no CUDA device is visible") == 1, outcome.err
    assert "rank 0 on " in outcome.err


def test_where_nobody_ends_it_each_rank_speaks_for_itself(synthetic, tmp_path):
    outcome = run_ranks(["train", synthetic, "--train.device", "cuda"], 2, tmp_path, PROGRAM, BLIND="01")
    assert outcome.codes == [2, 2]
    assert outcome.err.count("no CUDA device is visible") == 2, outcome.err
