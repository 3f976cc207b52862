"""Whom the Watchdog blames, and that it ends the rank whatever happens on the way; the ranks are made by hand."""

import threading
import time
from types import SimpleNamespace

import pytest

from distcnn.distributed import watchdog
from distcnn.distributed.blame import behind, blamed
from distcnn.distributed.device_clock import DevicePlace
from distcnn.distributed.heartbeat import Heartbeat, Heartbeats
from distcnn.distributed.process import RankProcess
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.errors import LostRankError


def heartbeat(step=6, phase_count=1, device=None):
    return Heartbeat(1, RankProcess("a", 10, 0.0), step, phase_count, "log", "stack", device and DevicePlace(*device))


def test_a_heartbeat_is_read_as_it_was_written():
    for one in (heartbeat(), heartbeat(device=(3, 2))):
        assert Heartbeat.read(one.write()) == one
        assert type(Heartbeat.read(one.write()).device) is type(one.device)


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([heartbeat(), heartbeat()], {0, 1}),
        ([heartbeat(6, 4), heartbeat(6, 3)], {1}),
        ([heartbeat(device=(3, 2)), heartbeat(device=(3, 1))], {1}),
        ([heartbeat(device=(3, 1)), heartbeat(device=(3, 1))], {0, 1}),
        ([heartbeat(5, 9, (3, 2)), heartbeat(6, 1, (3, 1)), heartbeat(6, 1, (3, 2))], {1}),  # rank 0's host has launched less
        ([heartbeat(5, 9, (3, 2)), heartbeat(6, 1, (3, 2))], {0}),
        ([heartbeat(5, 9, (3, 2)), heartbeat(6, 1, None), heartbeat(6, 1, (3, 1))], {0}),  # nothing is known of rank 1's device
    ],
)  # fmt: skip
def test_the_rank_is_behind_whose_device_is_or_else_whose_host_is(beats, expected):
    assert behind(dict(enumerate(beats))) == expected


def heartbeats(size, rank=0):
    """Of a World of that size, as of one moment, seen by that rank."""
    made = Heartbeats(World(rank, size), None, lambda _: heartbeat(), 1.0)
    made.newest = {rank: heartbeat(step=6 if rank else 7) for rank in made.ranks}  # rank 0 is ahead
    made._received_at = dict.fromkeys(made.ranks, time.monotonic())
    return made


def test_at_most_four_ranks_know_of_all():
    assert heartbeats(6, rank=3).ranks == {0, 1, 2, 3, 4, 5}
    assert heartbeats(6, rank=5).ranks == {0, 1, 2, 3, 5}
    assert heartbeats(2).ranks == {0, 1}


def test_a_rank_is_missing_whose_last_heartbeat_is_old_or_never_came():
    made = heartbeats(3)
    assert made.missing(30) == set()
    made._received_at[0] = made._received_at[1] = time.monotonic() - 40  # its own does not count
    del made._received_at[2]
    assert made.missing(30) == {1, 2}


def test_missing_ranks_are_blamed_else_those_behind_else_the_network():
    made = heartbeats(3)
    made._received_at[1] -= 40
    lines = [*blamed(made, {1})]
    assert lines == ["rank 1 on a, process 10: no sign of life for 40 s, last seen in log of step 7, at", "stack"]
    lines = [*blamed(made, set())]
    assert [line.split(":")[0] for line in lines] == [
        "rank 1 on a, process 10",
        "stack",
        "rank 2 on a, process 10",
        "stack",
    ]
    assert "alive, but behind the others, in log of step 7, at" in lines[0]
    made.newest[0] = heartbeat()
    first, second, _ = blamed(made, set())
    assert first == "all ranks are at the same place: is the network between them broken?"
    assert second.startswith("rank 0 on a")


def ended(**attributes):
    """A Watchdog that has not begun, and what it ends with and logs."""
    found, logged = [], []
    made = Watchdog(World(), None, 60, lambda error: found.append(str(error)), log=logged.append)
    vars(made).update(attributes)
    return made, found, logged


def test_a_report_that_fails_ends_the_rank_all_the_same():
    made, found, logged = ended()

    def report(said):
        said += ["rank 1 is behind", "  File x, line 1"]
        raise KeyError("step")

    made._end_with(report)
    assert found == ["rank 1 is behind\n  File x, line 1\nthe report stops here: KeyError: 'step'"]
    assert logged == ["rank 1 is behind; the report stops here: KeyError: 'step'"]


def test_a_log_that_stands_still_or_fails_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(watchdog, "_LOG_TIMEOUT_S", 0.05)
    freed, logged = threading.Event(), []
    for log in (lambda _: logged.append(freed.wait(20)), lambda why: {}[why]):
        made, found, _ = ended(log=log)
        made._end_with(lambda said: said.append("why"))
        assert (found, logged) == (["why"], [])
    freed.set()


@pytest.mark.parametrize(("own", "said"), [(True, "rank 1 has gone\nrank 0 of 1 on "), (False, "")])
def test_only_the_rank_that_found_it_speaks_but_each_logs_it(own, said):
    made, found, logged = ended(peers=SimpleNamespace(lost=LostRankError("rank 1 has gone", own=own)))
    made._end_with(made._report_loss)
    assert found[0].startswith(said)
    assert bool(found[0]) == own
    assert logged[0].startswith("rank 1 has gone")


def test_a_main_thread_that_has_heard_of_it_is_left_in_peace(monkeypatch):
    """It may stand in a question to the store for longer than one that hears nothing is waited for."""
    monkeypatch.setattr(watchdog, "IDLE_S", 0.2)
    monkeypatch.setattr(watchdog, "_SHUTDOWN_S", 20.0)
    made, _, _ = ended()
    assert not made._main_thread_ends()
    made, _, _ = ended(raised=True)
    threading.Timer(0.6, made.done.set).start()
    assert made._main_thread_ends()
    monkeypatch.setattr(watchdog, "_SHUTDOWN_S", 0.3)
    assert not ended(raised=True)[0]._main_thread_ends()  # not without end


def test_a_checkpoint_that_is_being_written_is_waited_for(monkeypatch):
    monkeypatch.setattr(watchdog, "IDLE_S", 0.2)
    written = threading.Event()
    saver = threading.Thread(target=written.wait, name="distcnn-saver")
    saver.start()
    threading.Timer(0.6, written.set).start()
    assert not ended()[0]._main_thread_ends()
    assert not saver.is_alive()
