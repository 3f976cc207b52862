"""Whoever finds that a rank has gone knows it at once; who was first, and speaks, the store says afterwards."""

import threading

import pytest

from distcnn.distributed.peers import Peers
from distcnn.distributed.process import RankProcess
from distcnn.distributed.world import World

GONE = "rank 1 of 3 on b, process 11, is gone: its process has ended"


class Store:
    """Answers once it may; `first` was there before."""

    def __init__(self, first=""):
        self.first, self.asked, self.may = first, threading.Event(), threading.Event()

    def compare_set(self, key, expected, value):
        self.asked.set()
        assert self.may.wait(20)
        assert (key, expected) == ("lost", "")
        return (self.first or value).encode()


def peers(store, rank=0):
    made = Peers(World(rank=rank, size=3), store, lambda: 0.0, lifeline=False)
    made.processes, made.report_store = [RankProcess(host, 10 + i, 0.0) for i, host in enumerate("abc")], store
    return made


@pytest.mark.parametrize(
    ("first", "own", "said"), [("", True, GONE), ("0\nit was me", True, "it was me"), ("2\nit was me", False, "it was me")]
)  # fmt: skip
def test_a_store_that_is_silent_holds_nothing_back(first, own, said):
    store = Store(first)
    found = peers(store)
    finder = threading.Thread(target=found._lose, args=(1, "its process has ended"))
    finder.start()
    assert store.asked.wait(20)
    raised = found.lost
    assert (str(raised), raised.own) == (GONE, True)
    store.may.set()
    finder.join()
    assert raised.own == own
    if not own:
        assert (str(found.lost), found.lost.own) == (said, False)


def test_the_first_word_stands_and_none_comes_after_the_end():
    store = Store()
    store.may.set()
    found = peers(store)
    found._lose(1, "its process has ended")
    found._lose(2, "its process has ended")
    assert str(found.lost) == GONE
    left = peers(store)
    left.leave()
    left._lose(1, "its process has ended")
    assert left.lost is None


def test_the_store_may_go_with_the_rank():
    class Gone(Store):
        def compare_set(self, *_):
            raise RuntimeError("Connection reset by peer")

    found = peers(Gone())
    found._lose(1, "its process has ended")
    assert found.lost.own
