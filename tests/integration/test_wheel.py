"""What an installed distcnn has: the wheel is built, and read back by a process that sees nothing of the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The unpacked wheel."""
    if find_spec("hatchling") is None:
        (pytest.fail if os.environ.get("DISTCNN_TEST_ALL") else pytest.skip)("hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, as hatchling leaves out what git ignores, and asks git, where it can, what that is.
    source = folder / "source"
    for name in ("distcnn", "slurm"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=installed.parent, env=environment | {"PYTHONPATH": str(installed)}, text=True, capture_output=True
    )


def test_it_brings_the_batch_scripts(installed):
    done = run(installed, "distcnn.slurm")
    scripts = installed / "distcnn" / "slurm" / "scripts"
    assert (done.stdout.strip(), done.stderr) == (str(scripts), "")
    shipped = {path.name: path.read_text() for path in (ROOT / "slurm").iterdir()}
    assert {path.name: path.read_text() for path in scripts.iterdir()} == shipped
    printed = run(installed, "distcnn", "slurm", str(ROOT / "configs" / "digits.yaml"), "--print")
    assert printed.stdout.endswith(shipped["job.sh"].split("\n", 1)[1]), printed.stderr
