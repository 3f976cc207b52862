"""Slow links between ranks, and their likely cause."""

from collections.abc import Mapping, Sequence
from statistics import median

from distcnn.doctor.findings import Finding, ok, warn

Pair = tuple[int, int]
Links = Mapping[Pair, float]  # (from, to) → bytes per second
_SLOW = 0.6  # relative to links of its kind: reports half the bandwidth, but not noise
_FIX = (
    "check {host}: its cable and switch port (ethtool), other traffic, limits (tc qdisc), and whether "
    "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME should name a faster interface; or exclude it"
)


def slow_links(found: Links, hosts: Sequence[str]) -> list[Pair]:
    """Return the links well below the usual speed of their kind: between hosts, or within one."""
    slow = []
    for within in (True, False):
        kind = {pair: speed for pair, speed in found.items() if (hosts[pair[0]] == hosts[pair[1]]) is within}
        if len(kind) > 1:
            usual = sorted(kind.values())[-max(1, len(kind) // 4)]  # the upper quartile, as most may be slow
            slow += [pair for pair, speed in kind.items() if speed < _SLOW * usual]
    return slow


def link_findings(found: Links, slow: Sequence[Pair], hosts: Sequence[str]) -> list[Finding]:
    """Report the speed of the links, or the slow ones; if all of a rank's links are slow, report the rank."""
    speeds = [speed / 1e6 for speed in found.values()]
    if not slow:
        text = f"{len(found)} links, {min(speeds):,.0f} to {max(speeds):,.0f} MB/s"
        return [ok("links", text)]
    findings, explained = [], set[Pair]()
    for verb, end in (("sends", 0), ("receives", 1)):
        for rank in range(len(hosts)):
            mine = [pair for pair in found if pair[end] == rank and hosts[pair[0]] != hosts[pair[1]]]
            mine = mine or [pair for pair in found if pair[end] == rank]
            if mine and all(pair in slow for pair in mine) and not explained.issuperset(mine):
                others = median(speed for pair, speed in found.items() if pair[end] != rank) / 1e6
                own = median(found[pair] for pair in mine) / 1e6
                text = f"rank {rank} on {hosts[rank]} {verb} {own:,.0f} MB/s, the others {others:,.0f}"
                findings.append(warn("links", text, _FIX.format(host=hosts[rank])))
                explained.update(mine)
    for sender, receiver in slow:
        if (sender, receiver) not in explained:
            text = f"rank {sender} on {hosts[sender]} to rank {receiver} on {hosts[receiver]}: "
            text += f"{found[sender, receiver] / 1e6:,.0f} MB/s, the median is {median(speeds):,.0f}"
            findings.append(warn("links", text, _FIX.format(host=f"{hosts[sender]} and {hosts[receiver]}")))
    return findings
