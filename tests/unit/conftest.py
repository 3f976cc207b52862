"""Unit tests run in this process, on one thread, and start no other, so that they are quick and leave nothing behind."""

from collections.abc import Iterator

import pytest
import torch

from tests.leaks import no_process_of_a_test, process_attempts  # noqa: F401 - fixtures of all tests here


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
