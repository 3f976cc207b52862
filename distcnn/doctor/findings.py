"""The doctor's findings, of one rank or of all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str  # of the check, such as "memory"
    status: Status
    what: str  # what was found
    fix: str = ""


@dataclass(frozen=True)
class RankReport:
    """The findings of one rank."""

    rank: int
    host: str
    findings: list[Finding]


def ok(name: str, what: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(name, "ok", what)


def warn(name: str, what: str, fix: str) -> Finding:
    """Return a finding of what costs time, or may fail later."""
    return Finding(name, "warn", what, fix)


def fail(name: str, what: str, fix: str) -> Finding:
    """Return a finding of what does not work."""
    return Finding(name, "fail", what, fix)


def merged(reports: Sequence[RankReport]) -> list[dict[str, Any]]:
    """Return each finding once, as a dict, with its `ranks` and `hosts`.

    The numbers of an "ok" finding may differ between ranks: the first rank's are shown.
    """
    groups: dict[Finding | str, tuple[Finding, list[RankReport]]] = {}
    for report in reports:
        for finding in report.findings:
            same = finding.name if finding.status == "ok" else finding
            groups.setdefault(same, (finding, []))[1].append(report)
    return [
        asdict(finding) | {"ranks": sorted({one.rank for one in those}), "hosts": sorted({one.host for one in those})}
        for finding, those in groups.values()
    ]
