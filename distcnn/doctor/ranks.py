"""Checks that compare ranks: versions, clocks, GPUs."""

from collections.abc import Sequence

from distcnn.distributed.device_check import shared_gpus
from distcnn.doctor.devices import Gpu
from distcnn.doctor.findings import Finding, RankReport, fail, ok, warn
from distcnn.text import listed_ranks

GROUP_CHECKS = ("clocks", "links", "gpus", "nccl")  # checks whose findings name their ranks


def versions_differ(reports: Sequence[RankReport]) -> list[Finding]:
    """Compare the ranks' packages with rank 0's."""
    texts = [next(one.what for one in report.findings if one.name == "versions") for report in reports]
    other = next((rank for rank, text in enumerate(texts) if text != texts[0]), None)
    if other is None:
        return []
    text = f"rank {other} on {reports[other].host} has other versions than rank 0: {texts[other]}"
    return [fail("versions", text, "start all ranks from one environment, or install the same in each")]


def clocks_agree(skews: Sequence[float], hosts: Sequence[str]) -> list[Finding]:
    """Check the clock skews: seconds ahead of rank 0, by rank."""
    worst = max(range(len(skews)), key=lambda rank: abs(skews[rank]))
    if abs(skews[worst]) > 1:
        text = f"rank {worst} on {hosts[worst]} is {skews[worst]:+.3f} s from rank 0"
        fix = "synchronise the hosts' clocks (chrony, systemd-timesyncd): otherwise logs and files are out of order"
        return [warn("clocks", text, fix)]
    return [ok("clocks", f"within {abs(skews[worst]) * 1000:.0f} ms")]


def gpus_of_ranks(gpus: Sequence[Gpu], *, over_gloo: bool = False) -> list[Finding]:
    """Check that the ranks, given in order, can train on GPUs together; no finding if none has one.

    Over gloo they may share one.
    """
    if not any(gpu.identity for gpu in gpus):
        return []
    findings = []
    without: dict[tuple[str, str | None], list[int]] = {}
    for rank, gpu in enumerate(gpus):
        if not gpu.identity:
            without.setdefault((gpu.host, gpu.visible), []).append(rank)
    for (host, visible), ranks in without.items():
        variable = "" if visible is None else f", CUDA_VISIBLE_DEVICES = {visible!r}"
        text = f"{listed_ranks(ranks, 8)} on {host}{variable}: no GPU to use, where others have one"
        fix = (
            f"give every rank a GPU (nvidia-smi on {host}; Slurm: --gpus-per-node or --gpus-per-task), start no "
            "ranks without one, or train on the CPUs: --train.device cpu"
        )
        findings.append(fail("gpus", text, fix))
    names = [gpu.identity or f"none on rank {rank}" for rank, gpu in enumerate(gpus)]
    if (shared := shared_gpus(names)) and not (over_gloo or all(gpu.shared for gpu in gpus)):
        text, _, fix = shared.removeprefix("train.device: ").partition(": ")
        findings.append(fail("gpus", text, fix))
    return findings or [ok("gpus", f"{len(gpus)} ranks, each with a usable GPU")]
