"""The checks of one rank alone: functions that yield findings, "ok" ones too."""

from collections.abc import Callable, Iterator

from distcnn.doctor.devices import devices
from distcnn.doctor.disk import cache, output_dir
from distcnn.doctor.findings import Finding
from distcnn.doctor.host import cores_of_ranks, launcher, locked_memory, memory, open_files, shared_memory, threads
from distcnn.doctor.situation import Situation
from distcnn.doctor.software import package_versions, wandb

CHECKS: tuple[Callable[[Situation], Iterator[Finding]], ...] = (
    package_versions, devices, launcher, cores_of_ranks, threads, memory, open_files, locked_memory, shared_memory,
    output_dir, cache, wandb,
)  # fmt: skip


def check_rank(situation: Situation) -> list[Finding]:
    """Run all checks of one rank."""
    return [finding for check in CHECKS for finding in check(situation)]
