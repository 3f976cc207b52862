"""The Python API: the examples of its docstrings run."""

import doctest

import distcnn


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(distcnn) == (0, 6)
