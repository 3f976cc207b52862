"""Calls that may never return are abandoned, and the message says how far they got."""

import time
from threading import Event

import pytest

from distcnn.distributed.timeout import call_with_timeout


def test_each_part_restarts_the_timeout():
    def work(alive):
        for i in range(4):
            alive(f"part {i}")
            time.sleep(0.15)
        return "done"

    assert call_with_timeout(work, 0.4) == "done"


@pytest.mark.parametrize(
    ("parts", "complaint", "said"),
    [
        (["the first exchange", "links"], "nothing moved", "nothing moved for 0.1 s in links"),
        ([], "who listens there has not answered", "who listens there has not answered for 0.1 s"),
    ],
)
def test_what_does_not_move_is_named_and_left_behind(parts, complaint, said):
    ended = Event()

    def work(alive):
        for part in parts:
            alive(part)
        ended.wait()

    with pytest.raises(TimeoutError) as raised:
        call_with_timeout(work, 0.1, complaint)
    assert str(raised.value) == said
    ended.set()


def test_what_it_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(lambda _: 1 / 0, 10)
