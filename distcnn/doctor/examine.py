"""Check each rank alone, then all ranks together, and report on rank 0."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distcnn.data.sources.folder import default_cache
from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.network import describe_network
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import World, world_from
from distcnn.doctor.devices import Gpu, own_gpu, usable
from distcnn.doctor.findings import RankReport, fail, ok
from distcnn.doctor.links import link_findings, slow_links
from distcnn.doctor.local import check_rank
from distcnn.doctor.nccl import over_nccl
from distcnn.doctor.network import Transport, clock_skew, measure
from distcnn.doctor.ranks import clocks_agree, gpus_of_ranks, versions_differ
from distcnn.doctor.situation import Situation
from distcnn.errors import DistcnnError, LauncherError, RendezvousError

Report = Callable[[Sequence[RankReport], dict[str, Any]], None]  # findings of all ranks, and measurements


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    output_dir: Path  # where runs would be written
    backend: str = "auto"  # as train.backend
    timeout_s: float = 60  # of the rendezvous


def examine(request: Request, report: Report) -> None:
    """Run all checks and call `report`: on rank 0, or on each rank if the rendezvous fails.

    Raises DistcnnError if a check fails, and LauncherError and RendezvousError as a training would.
    """
    host = socket.gethostname()
    try:
        world = world_from(os.environ)
    except LauncherError as error:  # each rank reports alone: none knows the others
        fix = "let one launcher set these variables, or none (docs/launchers.md)"
        alone = check_rank(Situation(World(), {}, request.output_dir, default_cache()))
        found = [fail("launcher", problem, fix) for problem in error.problems]
        report([RankReport(0, host, [*found, *(one for one in alone if one.name != "launcher")])], {})
        raise
    own = RankReport(world.rank, host, check_rank(Situation(world, os.environ, request.output_dir, default_cache())))
    try:
        _check_group(own, world, request, report)
    except RendezvousError as error:
        fix = "are all ranks started, is the port open between the hosts, does MASTER_ADDR resolve to rank 0's host?"
        own.findings.append(fail("rendezvous", str(error), fix))
        report([own], {})
        raise


def _check_group(own: RankReport, world: World, request: Request, report: Report) -> None:
    """Run the checks that need all ranks, and report on rank 0.

    Raises RendezvousError; DistcnnError if a check failed, before the group is destroyed, as a rank may hang.
    """
    torch.set_num_threads(1)
    gpu = own_gpu(world, own.host)
    own.findings.extend(usable(gpu))
    reports, measured = [own], dict[str, Any]()
    with process_group(world, device=torch.device("cpu"), timeout_s=request.timeout_s):
        if world.size > 1:
            own.findings.append(ok("network", describe_network(world)))
            reports, measured = _compare(own, gpu, world, request)
        if world.is_main:
            report(reports, measured)
        if failed := [finding.name for one in reports for finding in one.findings if finding.status == "fail"]:
            raise DistcnnError(f"{', '.join(dict.fromkeys(failed))}: see above")


def _compare(own: RankReport, gpu: Gpu, world: World, request: Request) -> tuple[list[RankReport], dict[str, Any]]:
    """Return all ranks' reports, with the findings between ranks, and the measurements. Equal on all ranks."""
    reports, gpus = gather_objects(own), gather_objects(gpu)
    hosts = [one.host for one in reports]
    skews = clock_skew()
    over_gloo = request.backend == "gloo"
    of_gpus = gpus_of_ranks(gpus, over_gloo=over_gloo)
    findings = [*versions_differ(reports), *clocks_agree(skews, hosts), *of_gpus]
    by_nccl = None
    if of_gpus and not over_gloo and all(finding.status == "ok" for finding in of_gpus):
        by_nccl, problems = over_nccl(world, gpu, hosts, request.timeout_s)
        findings += problems
    table, speeds = by_nccl or measure(Transport(world, torch.device("cpu")), hosts)
    findings += link_findings(speeds, slow_links(speeds, hosts), hosts)
    reports[0].findings.extend(findings)
    measured = {
        "all_reduce": [asdict(one) for one in table],
        "links": [{"from": i, "to": j, "bandwidth": speed} for (i, j), speed in sorted(speeds.items())],
        "clock_skew_s": skews, "backend": "nccl" if by_nccl else "gloo",
    }  # fmt: skip
    return reports, measured
