"""Whom the Watchdog blames, and that it ends the rank whatever happens on the way; the ranks are made by hand."""

import threading
from types import SimpleNamespace

import pytest

from distcnn.distributed import watchdog
from distcnn.distributed.device_clock import DevicePlace
from distcnn.distributed.watchdog import Beat, Watchdog
from distcnn.distributed.world import World
from distcnn.errors import LostRankError


def beat(step=6, moves=1, device=None):
    return Beat(1, "a", 10, 0.0, step, moves, "log", "stack", device and DevicePlace(*device))


def test_a_beat_is_read_as_it_was_written():
    for one in (beat(), beat(device=(3, 2))):
        assert Beat.read(one.write()) == one
        assert type(Beat.read(one.write()).device) is type(one.device)


@pytest.mark.parametrize(
    ("beats", "behind"),
    [
        ([beat(), beat()], {0, 1}),
        ([beat(6, 4), beat(6, 3)], {1}),
        ([beat(device=(3, 2)), beat(device=(3, 1))], {1}),
        ([beat(device=(3, 1)), beat(device=(3, 1))], {0, 1}),
        ([beat(5, 9, (3, 2)), beat(6, 1, (3, 1)), beat(6, 1, (3, 2))], {1}),  # rank 0's host has launched less
        ([beat(5, 9, (3, 2)), beat(6, 1, (3, 2))], {0}),
        ([beat(5, 9, (3, 2)), beat(6, 1, None), beat(6, 1, (3, 1))], {0}),  # nothing is known of rank 1's device
    ],
)
def test_the_rank_is_behind_whose_device_is_or_else_whose_host_is(beats, behind):
    assert watchdog._last(dict(enumerate(beats))) == behind


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
        raise KeyError("beat")

    made._end_with(report)
    assert found == ["rank 1 is behind\n  File x, line 1\nthe report ends here, by KeyError: 'beat'"]
    assert logged == ["rank 1 is behind; the report ends here, by KeyError: 'beat'"]


def test_a_log_that_stands_still_or_fails_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(watchdog, "_LOG_S", 0.05)
    freed, logged = threading.Event(), []
    for log in (lambda _: logged.append(freed.wait(20)), lambda why: {}[why]):
        made, found, _ = ended(log=log)
        made._end_with(lambda said: said.append("why"))
        assert (found, logged) == (["why"], [])
    freed.set()


@pytest.mark.parametrize(("own", "said"), [(True, "rank 1 has gone\nrank 0 of 1 on "), (False, "")])
def test_only_the_rank_that_found_it_speaks_but_each_logs_it(own, said):
    made, found, logged = ended(peers=SimpleNamespace(lost=LostRankError("rank 1 has gone", own=own)))
    made._end_with(made._say_lost)
    assert found[0].startswith(said)
    assert bool(found[0]) == own
    assert logged[0].startswith("rank 1 has gone")


def test_a_main_thread_that_has_heard_of_it_is_left_in_peace(monkeypatch):
    """It may stand in a question to the store for longer than one that hears nothing is waited for."""
    monkeypatch.setattr(watchdog, "STILL_S", 0.2)
    monkeypatch.setattr(watchdog, "_LAST_WORDS_S", 20.0)
    made, _, _ = ended()
    assert not made._leaves()
    made, _, _ = ended(raised=True)
    threading.Timer(0.6, made.done.set).start()
    assert made._leaves()
    monkeypatch.setattr(watchdog, "_LAST_WORDS_S", 0.3)
    assert not ended(raised=True)[0]._leaves()  # not without end


def test_a_checkpoint_that_is_being_written_is_waited_for(monkeypatch):
    monkeypatch.setattr(watchdog, "STILL_S", 0.2)
    written = threading.Event()
    saver = threading.Thread(target=written.wait, name="distcnn-saver")
    saver.start()
    threading.Timer(0.6, written.set).start()
    assert not ended()[0]._leaves()
    assert not saver.is_alive()
