"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import two_hosts
from tests.leaks import no_leaks_of_a_file, no_leaks_of_a_test  # noqa: F401 - fixtures of all tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: `--dist loadfile` gives each file to one worker, in this order."""
    items.sort(key=lambda item: item.path.stem != "test_slurm")


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A config that trains in seconds: few synthetic images with all augmentations, no W&B, runs beside it."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'runs'}\n"
        "data: {source: synthetic, args: {train: 500, test: 101}, image_size: 16,\n"
        "       augment: [{crop: {padding: 2}}, flip, {cutout: {size: 4}}]}\n"
        "optim: {name: sgd, lr: 0.02}\n"
        "train: {duration: 2ep, batch_size: 240, micro_batch: 20}\n"
        "tracking: {wandb: disabled, report: false}\n"
    )
    return config


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two hosts on this machine."""
    with two_hosts() as names:
        yield names
