"""Pieces of messages."""

import pytest

from distcnn import text
from distcnn.text import listed, listed_ranks, missing, plural, printable


@pytest.mark.parametrize(("count", "words"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (1000, "1,000 ranks")])
def test_a_count_has_its_nouns_number(count, words):
    assert plural(count, "rank") == words


def test_a_list_names_the_first_ones_and_counts_the_others():
    assert listed("abc") == "a, b, c"
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcd", 3) == "a, b, c and 1 more"
    assert listed_ranks([7]) == "rank 7"
    assert listed_ranks(range(10), 8) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_a_name_moves_no_cursor():
    assert (
        printable("a\x1b[2J\n\udcffb é")
        == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b é"
    )


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    assert missing("report", "json", "csv") == ""
    monkeypatch.setattr(text, "find_spec", lambda name: None if name in ("sklearn", "onnx") else "found")
    assert missing("digits", "sklearn") == "needs scikit-learn: pip install 'distcnn[digits]'"
    assert missing("export", "onnx", "json", "sklearn") == (
        "needs onnx and scikit-learn: pip install 'distcnn[export]'"
    )
