"""Unit tests run in this process, on one thread, and start no other, so that they are quick and leave nothing behind."""

import platform
from collections.abc import Iterator

import pytest
import torch

from tests.leaks import no_process_can_start


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="package")
def _attempts() -> Iterator[list[str]]:
    platform.platform()  # asks `uname` once in a process, and keeps the answer; a training records it
    with no_process_can_start() as attempts:
        yield attempts


@pytest.fixture(autouse=True)
def _no_process(_attempts: list[str]) -> Iterator[None]:
    """Also where the failure was caught on its way."""
    already = len(_attempts)
    yield
    assert not _attempts[already:], f"started a process; tests/integration is for it: {_attempts[already:]}"
