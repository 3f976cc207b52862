"""`distcnn doctor`: is this machine, and are all ranks of this launcher, fit for a training?"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcnn.commands.command import command_parser
from distcnn.errors import DistcnnError, LauncherError, RendezvousError
from distcnn.text import listed_ranks

if TYPE_CHECKING:
    from distcnn.distributed.world import World
    from distcnn.doctor.gpus import Gpu
    from distcnn.doctor.local import Finding

EPILOG = """examples:
  distcnn doctor
  torchrun --standalone --nproc_per_node=4 -m distcnn doctor
  srun -N 2 --ntasks-per-node=4 python -m distcnn doctor --json

Start it as the training would be started: what a launcher sets is part of what it looks at. With several ranks it also
measures their clocks, all-reduces and links, over NCCL if each rank has a GPU of its own, otherwise over gloo on the
CPUs. Nothing is left behind. The exit code is 1 if anything failed.
"""
_OF_ALL = ("clocks", "links", "gpus", "nccl")  # name their ranks themselves
MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True)
class Patient:
    """One rank, and what was found on it."""

    rank: int
    host: str
    findings: "list[Finding]"


def run(arguments: list[str]) -> None:
    """Look, measure, and print on rank 0. Raises DistcnnError where something failed."""
    options = _parser().parse_args(arguments)
    from distcnn.distributed.world import World, world_from
    from distcnn.doctor.local import Finding, look

    output, cache = (
        Path(options.output_dir),
        Path(os.environ.get("DISTCNN_CACHE") or Path.home() / ".cache" / "distcnn"),
    )
    try:
        world = world_from(os.environ)
    except LauncherError as error:  # each rank for itself: they do not know of each other
        found = [Finding("launcher", "fail", *_parted(problem)) for problem in error.problems]
        found += [finding for finding in look(World(), {}, output, cache) if finding.what != "launcher"]
        _report([Patient(0, socket.gethostname(), found)], {}, options.json)
        raise
    own = Patient(world.rank, socket.gethostname(), list(look(world, os.environ, output, cache)))
    try:
        _together(own, world, options)
    except RendezvousError as error:
        cure = "are all ranks started, is the port open between the hosts, does MASTER_ADDR lead to rank 0's host?"
        own.findings.append(Finding("meeting", "fail", str(error), cure))
        _report([own], {}, options.json)
        raise


def _parted(problem: str) -> tuple[str, str]:
    """(what is wrong, the cure) of a launcher's problem, which tells both in one text."""
    for mark in ("; ", ": "):
        what, found, cure = problem.rpartition(mark)
        if found:
            return what, cure
    return problem, ""


def _together(own: Patient, world: "World", options: argparse.Namespace) -> None:
    """Meet, measure what only all ranks together can tell, and print it on rank 0.

    Raises RendezvousError; DistcnnError where something failed, before the group is taken down: a rank may hang.
    """
    import torch

    from distcnn.distributed.rendezvous import describe_network, process_group
    from distcnn.doctor import gpus as doctor_gpus
    from distcnn.doctor.local import Finding

    torch.set_num_threads(1)
    gpu = doctor_gpus.own_gpu(world, own.host)
    own.findings.extend(doctor_gpus.usable(gpu))
    patients, measured = [own], dict[str, Any]()
    with process_group(world, device=torch.device("cpu"), timeout_s=options.timeout):
        if world.size > 1:
            own.findings.append(Finding("network", "ok", describe_network(world)))
            patients, measured = _compared(own, gpu, world, options)
        if world.is_main:
            _report(patients, measured, options.json)
        if failed := [finding.what for patient in patients for finding in patient.findings if finding.health == "fail"]:
            raise DistcnnError(f"{', '.join(dict.fromkeys(failed))}: see above")


def _compared(
    own: Patient, gpu: "Gpu", world: "World", options: argparse.Namespace
) -> tuple[list[Patient], dict[str, Any]]:
    """All ranks' patients, with what only they together can tell; and the measured tables. Equal on all ranks."""
    import torch

    from distcnn.distributed.collectives import gather_objects
    from distcnn.doctor import gpus as doctor_gpus
    from distcnn.doctor import network

    patients, gpus = gather_objects(own), gather_objects(gpu)
    hosts = [patient.host for patient in patients]
    skews = network.clock_skew()
    over_gloo = options.backend == "gloo"
    of_gpus = doctor_gpus.gpu_findings(gpus, over_gloo=over_gloo)
    findings = [*_versions_differ(patients), *_clocks(skews, hosts), *of_gpus]
    over_nccl = None
    if of_gpus and not over_gloo and all(finding.health == "ok" for finding in of_gpus):
        over_nccl, problems = doctor_gpus.over_nccl(world, gpu, hosts, options.timeout)
        findings += problems
    table, found = over_nccl or network.measure(network.Way(world, torch.device("cpu")), hosts)
    of_links = network.link_findings(found, network.slow_links(found, hosts), hosts)
    patients[0].findings.extend([*findings, *of_links])
    measured = {
        "all_reduce": [asdict(one) for one in table],
        "links": [{"from": i, "to": j, "bandwidth": speed} for (i, j), speed in sorted(found.items())],
        "clock_skew_s": skews, "backend": "nccl" if over_nccl else "gloo",
    }  # fmt: skip
    return patients, measured


def _versions_differ(patients: Sequence[Patient]) -> "list[Finding]":
    from distcnn.doctor.local import Finding

    texts = [next(f.found for f in patient.findings if f.what == "versions") for patient in patients]
    other = [patient for patient, text in zip(patients, texts, strict=True) if text != texts[0]]
    if not other:
        return []
    rank = other[0].rank
    where = f"rank {rank} on {other[0].host}"
    text = f"{where} has other ones than rank 0: {texts[rank]}"
    return [Finding("versions", "fail", text, "start all ranks from one environment, or install the same in each")]


def _clocks(skews: Sequence[float], hosts: Sequence[str]) -> "list[Finding]":
    from distcnn.doctor.local import Finding

    worst = max(range(len(skews)), key=lambda rank: abs(skews[rank]))
    text = f"rank {worst} on {hosts[worst]} is {skews[worst]:+.3f} s from rank 0"
    if abs(skews[worst]) > 1:
        cure = "synchronise the hosts' clocks (chrony, systemd-timesyncd): logs and files will seem out of order"
        return [Finding("clocks", "warn", text, cure)]
    return [Finding("clocks", "ok", f"within {abs(skews[worst]) * 1000:.0f} ms")]


def _report(patients: Sequence[Patient], measured: dict[str, Any], as_json: bool) -> None:
    merged: dict[Any, list[tuple[Patient, Finding]]] = {}
    for patient in patients:
        for finding in patient.findings:
            # Of launcher and memory each rank has its own numbers: where they are well, one stands for all.
            same = finding if finding.health != "ok" else finding.what
            merged.setdefault(same, []).append((patient, finding))
    rows = []
    for group in merged.values():
        those, finding = [patient for patient, _ in group], group[0][1]
        ranks = sorted({patient.rank for patient in those})
        rows.append(asdict(finding) | {"ranks": ranks, "hosts": sorted({patient.host for patient in those})})
    if as_json:
        print(json.dumps({"findings": rows, **measured}), flush=True)
        return
    _print(rows, measured, len(patients))


def _print(rows: Sequence[dict[str, Any]], measured: dict[str, Any], world_size: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for row in rows:
        mark, style = MARKS[row["health"]]
        some = row["health"] != "ok" and row["what"] not in _OF_ALL and len(row["ranks"]) < world_size
        whose = f" ({listed_ranks(row['ranks'], 8)})" if some else ""
        text = Text(row["found"] + whose)
        if row["fix"]:
            text.append(f"\n→ {row['fix']}", style="bold")
        table.add_row(Text(f"{mark} {row['health']}", style=style), Text(row["what"]), text)
    console.print(table)
    if measured:
        sizes = Table(title=f"all-reduce, {measured['backend']}", title_justify="left", box=None, pad_edge=False)
        for title in ("size", "latency", "bus bandwidth"):
            sizes.add_column(title, justify="right")
        for one in measured["all_reduce"]:
            sizes.add_row(_bytes(one["size"]), f"{one['seconds'] * 1e3:.2f} ms", f"{one['bandwidth'] / 1e6:,.1f} MB/s")
        console.print(sizes)
        if world_size <= 16:
            console.print(_matrix(measured["links"], world_size))
    counts = {health: sum(row["health"] == health for row in rows) for health in MARKS}
    console.print(", ".join(f"{count} {health}" for health, count in counts.items()))


def _matrix(links: Sequence[dict[str, Any]], size: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = Text("links in MB/s, from row to column", no_wrap=True, overflow="ignore")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    speeds = {(one["from"], one["to"]): one["bandwidth"] for one in links}
    table.add_column("rank", justify="right")
    for rank in range(size):
        table.add_column(f"{rank}", justify="right")
    for i in range(size):
        table.add_row(f"{i}", *("" if i == j else f"{speeds[i, j] / 1e6:,.0f}" for j in range(size)))
    return table


def _bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >> 20 else f"{count >> 10} KiB"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("doctor", "[options]", __doc__, EPILOG)
    add = parser.add_argument
    add("--output-dir", default="runs", metavar="FOLDER", help="where runs would lie; default: runs")
    add("--backend", default="auto", choices=("auto", "gloo"), help="as train.backend; default: auto")
    add("--timeout", type=float, default=60, metavar="S", help="seconds to wait for the other ranks; default: 60")
    add("--json", action="store_true", help="print one JSON object instead of the tables")
    return parser
