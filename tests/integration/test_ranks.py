"""The helper that starts ranks for all tests: nothing of it is lost, and nothing of it is left."""

import signal

import psutil
import pytest

from tests.ranks import bare, run_ranks, start, torchrun

SAYS = """
import os, sys
rank = os.environ.get("RANK", "alone")
print("out of", rank)
print("err of", rank, file=sys.stderr)
sys.exit(3 if rank == "1" else 0)
"""
SLEEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(1000)
"""


def python(code):
    return ("-c", code)


def test_codes_and_output_are_those_of_the_ranks():
    with start([], 3, python(SAYS)) as ranks:
        assert ranks.wait() == [0, 3, 0]
        assert ranks.out(1) == "out of 1\n"
    # Also after the end.
    assert ranks.out() == "out of 0\nout of 1\nout of 2\n"
    assert ranks.err(2) == "err of 2\n"
    alone = run_ranks([], program=python(SAYS))
    assert (alone.codes, alone.out, alone.err) == ([0], "out of alone\n", "err of alone\n")


def test_no_variable_of_a_launcher_gets_through(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MASTER_ADDR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    shows = "import os; print(sorted(n for n, v in os.environ.items() if v == '7'))"
    assert run_ranks([], program=python(shows)).out == "[]\n"
    assert run_ranks([], program=python(shows), SLURM_PROCID="7").out == "['SLURM_PROCID']\n"
    one, two = bare(2)
    assert run_ranks([], [one, two | {"OWN": "7"}], program=python(shows)).out == "[]\n['OWN']\n"


def test_more_output_than_a_pipe_holds_blocks_nobody():
    code = "import sys; sys.stderr.write('x' * 1_000_000); sys.stdout.write('y' * 1_000_000)"
    outcome = run_ranks([], 2, program=python(code))
    assert (len(outcome.err), len(outcome.out)) == (2_000_000, 2_000_000)


def test_at_the_end_nobody_is_left_children_included():
    with start([], 2, python(SLEEPS)) as ranks:
        ranks.until(lambda: ranks.out().count("\n") == 2)
        children = [psutil.Process(int(pid)) for pid in ranks.out().split()]
        assert {process.pid for process in ranks.alive()} == {p.pid for p in [*ranks, *children]}
    assert [process.returncode for process in ranks] == [-signal.SIGKILL] * 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_a_signal_reaches_one_rank_alone():
    with start([], 2, python(SLEEPS)) as ranks:
        ranks.until(lambda: ranks.out().count("\n") == 2)
        ranks[1].send_signal(signal.SIGTERM)
        assert ranks[1].wait(60) == -signal.SIGTERM
        assert ranks[0].poll() is None
        with pytest.raises(AssertionError, match="ended too early"):
            ranks.until(lambda: False)
        with pytest.raises(TimeoutError, match="rank 0 runs after"):
            ranks.wait(0.1)


def test_what_runs_python_and_what_python_runs():
    outcome = run_ranks(
        [5], program=python("import sys; print(sys.argv[1])"), within=["sh", "-c", '"$@"; exit 4', "sh"]
    )
    assert (outcome.codes, outcome.out) == ([4], "5\n")
    assert torchrun(2, "--max-restarts=1")[-3:] == ("--max-restarts=1", "-m", "distcnn")


def test_a_program_that_is_not_there_leaves_nothing():
    with pytest.raises(FileNotFoundError):
        start([], 2, within=["/no/such/program"])
