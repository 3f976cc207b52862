"""What takes long: the tests of tests/unit beside a GPU, and compute-sanitizer: python -m tests.gpu.more"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

from tests.gpu.suite import ROOT, Place, Skip, expect
from tests.gpu.suites import MORE
from tests.gpu.work import base, environment
from tests.ranks import clean_environment


@MORE.check("T2", "the tests of tests/unit, where CUDA is visible", "all pass", 100)
def t2(place: Place) -> str:
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        raise Skip(f"no {', '.join(missing)}")
    spread = ["-n", "8", "--dist", "loadfile"] if find_spec("xdist") and not place.toy else ["-p", "no:xdist"]
    which = [f"tests/unit/test_{name}.py" for name in ("samplers", "batchnorm")] if place.toy else ["tests/unit"]
    # What the page of results is made of is being written, and a report of several runs is Plotly's.
    left_out = ["gpu_page", *([] if find_spec("plotly") else ["history"])]
    which += [f"--ignore=tests/unit/test_{name}.py" for name in left_out]
    # Python 3.12 warns of each fork beside threads, which CUDA has. Pytest takes the words as they are, from the first.
    forks = ["-W", "ignore:This process (pid=:DeprecationWarning"]
    known = clean_environment() | environment(place)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *forks, *spread, *which]
    done = subprocess.run(pytest, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [
        line.partition(" - ")[0].removeprefix("FAILED ") for line in lines if line.startswith(("FAILED", "ERROR"))
    ]
    place.note(failed=failed, left_out=left_out)
    last = lines[-1].strip("= ") if lines else done.stderr[-200:]
    expect(done.returncode == 0, f"{last}: {', '.join(failed[:4])}")
    return f"{last}; left out: {', '.join(left_out)}"


@MORE.check("T15", "two steps through NCCL under compute-sanitizer's memcheck", "0 errors", 60)
def t15(place: Place) -> str:
    place.needs_cuda()
    if shutil.which("compute-sanitizer") is None:
        raise Skip("no compute-sanitizer")
    # A small network in float32, and its own evaluation: each kernel takes a hundred times as long and more.
    settings = base(place, train__duration="2step", name="checked", train__batch_size=64, train__micro_batch=16,
                    data__args__train=256, data__args__test=64)  # fmt: skip
    jobs = place.home / "jobs.json"
    jobs.write_text(json.dumps([{"group": "nccl", "settings": settings}]), encoding="utf-8")
    # Calls that may fail, as those by which libraries ask what a GPU can, are no errors of memory.
    within = [
        "compute-sanitizer",
        *["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"],
        sys.executable,
    ]
    known = clean_environment() | environment(place, shared=True, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    done = subprocess.run(
        [*within, "-m", "tests.gpu.trainings", str(jobs)], env=known, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    found = ([line.strip("= ") for line in lines if "ERROR SUMMARY" in line] or lines or ["no word"])[-1]
    expect(done.returncode == 0 and found == "ERROR SUMMARY: 0 errors", f"exit {done.returncode}: {found}")
    return found


if __name__ == "__main__":
    sys.exit(MORE.main())
