"""The four commands for a GPU at toy sizes on the CPU: no minute on a GPU is to be lost to a slip of the pen."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.gpu.images import pack, unpack
from tests.gpu.pretended import CHECKS as CHECKS_ON_A_STAND_IN
from tests.gpu.suite import ROOT
from tests.ranks import clean_environment

# What only CUDA has; all else has to be found as expected.
NEEDS_CUDA = {
    "tests.gpu.correct": {"T11": "needs CUDA"},
    "tests.gpu.more": {"T15": "needs CUDA"},
    "tests.gpu.ranks": {"R3": "needs CUDA", "R4": "needs CUDA"},
    "benchmarks.gpu": {},
}
CHECKS = {
    "tests.gpu.correct": [f"T{i}" for i in range(15) if i != 2],
    "tests.gpu.more": ["T15", "T2"],
    "tests.gpu.ranks": [f"R{i}" for i in range(1, 11)],
    "benchmarks.gpu": [f"S{i}" for i in range(1, 9)],
}


def photos(root):
    """32 training and 16 test images of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / split / name / f"{i}.png")
    return root


def run(module, *arguments):
    """Exit code, stdout and stderr."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def results(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0], {line["name"]: line for line in lines[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("module", CHECKS)
def test_every_check_is_ok_on_the_cpu_or_needs_cuda(tmp_path, module):
    packed = tmp_path / "images.npz"
    pack(photos(tmp_path / "images"), packed)
    options = ["--device", "cpu", "--toy", "--minutes", "30", "--out", tmp_path, "--data", packed]
    code, out, err = run(module, *options)
    (path,) = tmp_path.glob("*.jsonl")
    machine, found = results(path)
    assert sorted(found) == sorted(CHECKS[module])
    assert {name: one["value"] for name, one in found.items() if one["status"] == "skip"} == NEEDS_CUDA[module]
    assert {name: one for name, one in found.items() if one["status"] not in ("ok", "skip")} == {}, out + err
    assert code == 0
    assert machine["toy"]
    assert machine["gpu"] == ""
    assert all(f"{name:<4} {one['status']}" in out for name, one in found.items())


@pytest.mark.slow
def test_what_is_for_cuda_alone_runs_on_a_stand_in_for_it():
    """An AttributeError in a branch that only a GPU takes would end it."""
    code, out, err = run("tests.gpu.pretended")
    assert code == 0, err[-2000:]
    assert sorted(line.split()[0] for line in out.splitlines() if line[0] in "TS") == sorted(CHECKS_ON_A_STAND_IN)
    assert [line for line in out.splitlines() if line.startswith("T3")] == ["T3  returned: 0 of 3 kinds"]
    # A step that is captured and replayed has the losses of an eager one only if both began alike.
    assert [line[:22] for line in out.splitlines() if line.startswith("S4")] == ["S4  returned: simple_c"]


def test_a_file_of_images_is_the_folder_again(tmp_path):
    folder, packed = photos(tmp_path / "images"), tmp_path / "images.npz"
    assert pack(folder, packed) == 48
    again = unpack(packed, tmp_path / "again")
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.png")} == files
    assert unpack(folder, tmp_path / "unused") == folder


SUITE = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from tests.gpu.suite import Place, Skip, Suite, expect
suite = Suite("faulty", "Checks that go wrong")

@suite.check("X1", "it is well", "well", 1)
def x1(place): place.note(seen=1); return "well"

@suite.check("X2", "it is not", "well", 1)
def x2(place): print("its last words"); expect(False, "ill")

@suite.check("X3", "it raises", "well", 1)
def x3(place): raise LookupError("planted")

@suite.check("X4", "it lacks something", "well", 1)
def x4(place): raise Skip("no data")

@suite.check("X5", "it dies", "well", 1)
def x5(place): os.kill(os.getpid(), 9)

@suite.check("X6", "it hangs, and so does what it has started", "well", 1, first=True)
def x6(place):
    place.note(child=subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
    time.sleep(1000)

@suite.check("X10", "there is no time for it", "well", 1)
def x10(place): return "well"

sys.exit(suite.main())
"""


def faulty(tmp_path, *arguments):
    script = tmp_path / "faulty.py"
    script.write_text(SUITE.format(root=str(ROOT)))
    command = [sys.executable, str(script), "--device", "cpu", "--toy", "--out", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done, results(tmp_path / "faulty.jsonl")[1]


def test_whatever_a_check_does_it_has_a_line(tmp_path):
    import psutil

    done, found = faulty(tmp_path, "--only", "X1,X2,X3,X4,X5")
    assert done.returncode == 1
    statuses = {name: (one["status"], one["value"]) for name, one in found.items()}
    assert statuses == {
        "X1": ("ok", "well"), "X2": ("FAIL", "ill"), "X3": ("FAIL", "LookupError: planted"), "X4": ("skip", "no data"),
        "X5": ("FAIL", "its process ended with -9"),
    }  # fmt: skip
    assert found["X1"]["numbers"] == {"seen": 1}
    assert "its last words" in found["X2"]["tail"]
    assert "LookupError" in found["X3"]["tail"]
    assert done.stdout.splitlines()[-1] == "1 ok, 3 FAIL, 1 skip, 0 not run"
    assert not psutil.Process().children()


def test_a_check_that_hangs_is_cut_with_all_that_it_started_and_the_rest_is_said_not_to_have_run(tmp_path):
    import psutil

    done, found = faulty(tmp_path, "--only", "X1,X6,X10", "--minutes", "0.5")
    assert done.stdout.splitlines()[-1] == "0 ok, 0 FAIL, 0 skip, 3 not run"
    assert [*found] == ["X6", "X1", "X10"]  # what matters most comes first
    assert found["X6"]["value"] == "cut: no time was left"
    assert found["X10"]["value"] == "0 s were left"
    child = found["X6"]["numbers"]["child"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = run("tests.gpu.ranks", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "no CUDA device is visible" in err
    assert not list(tmp_path.iterdir())


def test_a_check_that_is_not_there_is_bad_input(tmp_path):
    code, _, err = run("tests.gpu.ranks", "--only", "R1,R99", "--out", tmp_path)
    assert code == 2
    assert "no check R99" in err


@pytest.mark.parametrize("option", ["--nccl", "--airbench", "--data"])
def test_a_file_that_is_not_there_is_bad_input(tmp_path, option):
    code, out, err = run("tests.gpu.ranks", option, "nowhere/file", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert f"there is no {ROOT / 'nowhere' / 'file'}" in err
    assert not list(tmp_path.iterdir())


PATHS = """
import sys
sys.path.insert(0, {root!r})
from tests.gpu.suite import Suite
suite = Suite("paths", "Prints what it was given")

@suite.check("X1", "the files", "found", 1)
def x1(place): return " ".join(str(path) for path in (*place.extra.values(), place.data) if path.exists())

sys.exit(suite.main())
"""


def test_what_is_given_is_found_from_where_the_command_was_called(tmp_path):
    (tmp_path / "paths.py").write_text(PATHS.format(root=str(ROOT)))
    (tmp_path / "library").touch()
    photos(tmp_path / "images")
    command = [sys.executable, "paths.py", "--device", "cpu", "--toy", "--out", "results", "--nccl", "library", "--airbench",
               "paths.py", "--data", "images"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    _, found = results(tmp_path / "results" / "paths.jsonl")
    assert found["X1"]["value"] == f"{tmp_path / 'library'} {tmp_path / 'paths.py'} {tmp_path / 'images'}"
