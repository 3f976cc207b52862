"""Which ranks hold up the others in a hang, and the lines of the report about them."""

from collections.abc import Iterator, Mapping

from distcnn.distributed.heartbeat import Heartbeat, Heartbeats


def blamed(heartbeats: Heartbeats, missing: set[int]) -> Iterator[str]:
    """Yield the report's lines: the missing ranks, else those behind the others, each with its phase and stack.

    Kills a missing process of this host, so that its launcher does not wait for it.
    """
    ranks = missing or behind(heartbeats.newest)
    if ranks == heartbeats.ranks:
        yield "all ranks are at the same place: is the network between them broken?"
        ranks = {heartbeats.me}
    for rank in sorted(ranks & set(heartbeats.newest)):
        one = heartbeats.newest[rank]
        state = "alive, but behind the others, in"
        if rank in missing:
            state = f"no sign of life for {heartbeats.silent_s(rank):.0f} s, last seen in"
        yield (
            f"rank {rank} on {one.process.host}, process {one.process.pid}: {state} {one.phase} of step {one.step + 1}"
            f"{one.progress}, at"
        )
        yield one.stack.rstrip()
        if rank in missing and one.process.kill():
            yield f"killed rank {rank}'s process, so that its launcher does not wait for it"


def behind(heartbeats: Mapping[int, Heartbeat]) -> set[int]:
    """Return the ranks that are behind the others; all of them if they are at the same place.

    If a device hangs, the hosts run on until they synchronize with theirs or its launch queue is full. So the devices
    are compared, if all are known and they differ, and otherwise the hosts.
    """
    devices = {rank: one.device for rank, one in heartbeats.items() if one.device is not None}
    if len(devices) == len(heartbeats) and len({*devices.values()}) > 1:
        return {rank for rank, device in devices.items() if device == min(devices.values())}
    least = min((one.place for one in heartbeats.values()), default=(0, 0))
    return {rank for rank, one in heartbeats.items() if one.place == least}
