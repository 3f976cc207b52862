"""The fixtures of tests/leaks.py see each kind of leak, and nothing where there is none."""

import re
from pathlib import Path

import pytest

from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
CONFTEST = """
import tests.leaks
from tests.leaks import no_leaks_of_a_file, no_leaks_of_a_test

tests.leaks.GRACE_S = 1
"""
TESTS = """
import os, signal, subprocess, sys, threading, time
import pytest, torch
import torch.distributed as dist

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
kept = []

@pytest.fixture
def without():
    os.environ["WITHOUT"] = "here"

@pytest.fixture(scope="module")
def shell():
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)

def test_new_variable(): os.environ["LEAK"] = "1"
def test_other_variable(): os.environ["HOME"] = "/nowhere"
def test_missing_variable(): del os.environ["PATH"]
def test_variable_of_a_fixture(without): pass
def test_thread(): threading.Thread(target=time.sleep, args=(5,), name="left").start()
def test_own_daemon_thread(): threading.Thread(target=time.sleep, args=(5,), name="distcnn-x", daemon=True).start()
def test_process(): kept.append(subprocess.Popen(SLEEP))
def test_process_of_a_process():
    kept.append(subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", *SLEEP]))
def test_group(): dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
def test_dtype(): torch.set_default_dtype(torch.float64)
def test_deterministic(): torch.use_deterministic_algorithms(True)
def test_no_gradients(): torch.set_grad_enabled(False)

def test_clean(monkeypatch):
    monkeypatch.setenv("LEAK", "1")
    thread = threading.Thread(target=time.sleep, args=(0.01,), name="distcnn-y")
    thread.start()
    thread.join()
    subprocess.run(["true"], check=True)

def test_all_is_as_it_was():
    assert os.environ["HOME"] != "/nowhere" and "PATH" in os.environ and "WITHOUT" not in os.environ
    assert not dist.is_initialized() and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert all(process.wait(10) for process in kept)

def test_a_thread_that_is_ending(): threading.Thread(target=time.sleep, args=(0.3,)).start()
def test_a_daemon_of_somebody_else(): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
def test_a_process_that_has_ended(): kept.append(subprocess.Popen(["true"]))
def test_what_a_process_of_a_file_starts(shell):
    shell.stdin.write(b"sleep 60 & echo\\n")
    shell.stdin.flush()
    assert shell.stdout.readline() == b"\\n"
def test_a_training_sets_the_threads(): torch.set_num_threads(torch.get_num_threads() + 1)
"""
LEAKS = {
    "test_new_variable": "$LEAK was None, is '1'",
    "test_other_variable": "$HOME was '.*', is '/nowhere'",
    "test_missing_variable": "$PATH was '.*', is None",
    "test_variable_of_a_fixture": "$WITHOUT was None, is 'here'",
    "test_thread": "thread left",
    "test_own_daemon_thread": "thread distcnn-x",
    "test_process": r"process \d+, .*python\S* -c import time",
    "test_process_of_a_process": r"process \d+, .*python\S* -c import time",
    "test_group": "a process group",
    "test_dtype": "torch's default dtype was torch.float32, is torch.float64",
    "test_deterministic": "torch's deterministic algorithms was 0, is 2",
    "test_no_gradients": "torch's gradients was True, is False",
}
OF_A_FILE = """
import os
import pytest

@pytest.fixture(scope="module", autouse=True)
def sets():
    os.environ["LEAK_OF_A_FILE"] = "1"

def test_first(): pass
def test_last(): pass
"""
NO_PROCESS_CONFTEST = "from tests.leaks import no_process_of_a_test, process_attempts"
PROCESSES = """
import multiprocessing, os, subprocess, sys, warnings
import pytest, torch
from torch.utils.data import DataLoader

@pytest.fixture(scope="module")
def starts():
    subprocess.run(["true"])

def test_run(): subprocess.run(["true"])
def test_popen(): subprocess.Popen(["true"])
def test_shell(): os.system("true")
def test_fork():
    if os.fork() == 0:
        os._exit(0)
def test_spawn(): os.posix_spawn("/bin/true", ["true"], {})
def test_multiprocessing(): multiprocessing.get_context("spawn").Process(target=print).start()
def test_workers():
    warnings.simplefilter("ignore")
    list(DataLoader(torch.arange(4), num_workers=1))
def test_fixture(starts): pass
def test_caught():
    try:
        subprocess.run(["true"])
    except BaseException:
        pass
def test_starts_none(): list(DataLoader(torch.arange(4)))
"""


def pytest_of(folder, conftest, tests):
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_inner.py").write_text(tests)
    quiet = ["-p", "no:cacheprovider", "-p", "no:randomly", "-q", "-rA", "--tb=short", "--rootdir", folder]
    return run_ranks([*quiet, folder], cwd=folder, program=("-m", "pytest"), PYTHONPATH=str(ROOT), COLUMNS="4000")


def told(out, kind):
    """{test: what the short summary says of it}"""
    return dict(re.findall(rf"^{kind} test_inner\.py::(\w+)(?: - (.*))?$", out, re.MULTILINE))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    return pytest_of(tmp_path_factory.mktemp("leaks"), CONFTEST, TESTS)


def test_each_leak_fails_its_test_and_names_itself(leaking):
    errors = told(leaking.out, "ERROR")
    assert errors.keys() == LEAKS.keys(), leaking.out + leaking.err
    for name, said in LEAKS.items():
        assert re.search("left behind: .*" + said.replace("$", r"\$"), errors[name]), errors[name]


def test_after_a_leak_all_is_as_it_was(leaking):
    assert told(leaking.out, "FAILED") == {}, leaking.out
    assert "test_all_is_as_it_was" in told(leaking.out, "PASSED")


def test_a_leak_of_a_files_fixture_is_found_at_the_files_end(tmp_path):
    outcome = pytest_of(tmp_path, CONFTEST, OF_A_FILE)
    assert told(outcome.out, "ERROR").keys() == {"test_last"}, outcome.out
    assert "$LEAK_OF_A_FILE was None, is '1'" in outcome.out


def test_a_unit_test_that_starts_a_process_fails(tmp_path):
    outcome = pytest_of(tmp_path, NO_PROCESS_CONFTEST, PROCESSES)
    failed, errors = told(outcome.out, "FAILED"), told(outcome.out, "ERROR")
    names = set(re.findall(r"^def (test_\w+)", PROCESSES, re.MULTILINE))
    assert failed.keys() | errors.keys() == names - {"test_starts_none"}, outcome.out + outcome.err
    assert "test_caught" in errors
    assert all("tests/integration is for it" in said for said in (failed | errors).values()), outcome.out
