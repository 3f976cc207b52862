"""Fixtures that fail a test for what it leaves behind, and, for tests/unit, one that fails it for starting a process.

Each test is looked at by itself, and each file as a whole, which includes its fixtures of module scope. What is found
is also put right, so that one leak fails one test. What a training in this process sets by design, as its config says
(threads, TF32, cuDNN), is put back without a word.
"""

import multiprocessing.process
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil
import pytest

GRACE_S = 10  # for threads and processes that are ending
# pytest's own; and what scikit-learn and PyTorch's compiler set for their whole process when they are first used.
LIBRARIES_SET = (
    "PYTEST_CURRENT_TEST",
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)
# Started once by Python or PyTorch, for the whole process.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail where there is more after it than before it: variables, threads, processes, a group, PyTorch's settings."""
    environment, threads, processes = dict(os.environ), set(threading.enumerate()), set(_children())
    settings = _torch_settings()
    yield
    problems = [*_environment(environment), *_group(), *_settings(settings)]
    deadline = time.monotonic() + GRACE_S
    while (left := [*_threads(threads), *_processes(processes)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    if problems := [*problems, *left]:
        for process in _new_children(processes):
            process.kill()
        pytest.fail("left behind: " + "; ".join(problems), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def no_leaks_of_a_file() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def no_leaks_of_a_test(no_leaks_of_a_file: None) -> Iterator[None]:
    with nothing_left():
        yield


def _environment(before: dict[str, str]) -> list[str]:
    after = dict(os.environ)
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name) and name not in LIBRARIES_SET]
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return [f"${name} was {before.get(name)!r}, is {after.get(name)!r}" for name in sorted(changed)]


def _threads(before: set[threading.Thread]) -> list[str]:
    """Of daemon threads, which end with the process, only our own: each is to be ended by whoever began it."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    return [f"thread {t.name}" for t in new if t.is_alive() and (not t.daemon or t.name.startswith("distcnn"))]


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not any(helper in command for helper in HELPERS):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _new_children(before: set[psutil.Process]) -> list[psutil.Process]:
    """What a process from before has started since, as a browser of a file's fixture does, is that one's."""
    found = []
    for process in set(_children()) - before:
        try:
            if before.isdisjoint(process.parents()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _processes(before: set[psutil.Process]) -> list[str]:
    found = []
    for process in _new_children(before):
        try:
            found.append(f"process {process.pid}, {' '.join(process.cmdline())[:200]}")
        except psutil.NoSuchProcess:
            continue
    return found


def _group() -> list[str]:
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return []
    distributed.destroy_process_group()
    return ["a process group"]


Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
OF_A_TRAINING = ("threads", "matmul precision", "cudnn.allow_tf32", "cudnn.benchmark", "cudnn.deterministic")


def _of_torch() -> dict[str, Setting]:
    """PyTorch's settings of the whole process: how each is read and set."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "use_deterministic_algorithms"):  # not imported, or only in part
        return {}

    def cudnn(name: str) -> Setting:
        return lambda: getattr(torch.backends.cudnn, name), lambda value: setattr(torch.backends.cudnn, name, value)

    return {
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "cudnn.allow_tf32": cudnn("allow_tf32"),
        "cudnn.benchmark": cudnn("benchmark"),
        "cudnn.deterministic": cudnn("deterministic"),
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "deterministic algorithms": (
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
    }


def _torch_settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in _of_torch().items()}


def _settings(before: dict[str, Any]) -> list[str]:
    found = []
    for name, (read, put_back) in _of_torch().items():
        if name in before and (now := read()) != before[name]:
            put_back(before[name])
            if name not in OF_A_TRAINING:
                found.append(f"torch's {name} was {before[name]}, is {now}")
    return found


# Every way to start a process from Python; the others call one of these.
STARTERS: tuple[tuple[Any, str], ...] = (
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    *((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system") if hasattr(os, name)),
)


@contextmanager
def no_process_can_start() -> Iterator[list[str]]:
    """Fail where a process is started; gives the list of these attempts, for code that survives the failure."""
    attempts: list[str] = []

    def refusing(owner: Any, name: str) -> Callable[..., NoReturn]:
        def refuse(*arguments: Any, **options: Any) -> NoReturn:
            said = arguments[1:] if isinstance(owner, type) else arguments  # without self, which is not made yet
            attempts.append(f"{owner.__name__}.{name}{said}"[:200])
            pytest.fail(f"a test in tests/unit started a process: {attempts[-1]}; tests/integration is for it")

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STARTERS:
            patch.setattr(owner, name, refusing(owner, name))
        yield attempts


@pytest.fixture(autouse=True, scope="package")
def process_attempts() -> Iterator[list[str]]:
    platform.platform()  # asks `uname` once in a process, and keeps the answer; a training records it
    with no_process_can_start() as attempts:
        yield attempts


@pytest.fixture(autouse=True)
def no_process_of_a_test(process_attempts: list[str]) -> Iterator[None]:
    """Also where the failure was caught on its way."""
    already = len(process_attempts)
    yield
    new = process_attempts[already:]
    assert not new, f"started a process; tests/integration is for it: {new}"
