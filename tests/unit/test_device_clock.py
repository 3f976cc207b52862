"""A rank's steps on a pretended GPU: what it has done, and how long it was busy without its waits for the others."""

import threading

import pytest
import torch

from distcnn.distributed import device_clock
from distcnn.distributed.device_clock import DeviceClock, DevicePlace
from tests.unit.pretend_events import Device


def step(clock, device, number, compute, wait, buckets=2, micro_batches=2):
    """One step as train_step and the hook tell of it; `compute` seconds before the last bucket, 1 after the wait."""
    clock.enter("data")
    for micro in range(micro_batches):
        clock.enter("forward")
        clock.enter("backward")
        if micro == micro_batches - 1:
            for bucket in range(buckets):
                device.now += compute / buckets
                clock.enter("gradient sync")
                if bucket < buckets - 1:
                    clock.enter("backward")
            device.now += wait
        clock.enter("statistics")
        if micro < micro_batches - 1:
            clock.enter("data")
    clock.enter("optimizer")
    device.now += 1
    clock.step_issued(number)
    clock.enter("agreement")


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def test_busy_is_all_but_the_wait_after_the_last_bucket(device):
    clock = DeviceClock(torch.device("cuda", 0))
    clock.step_issued(0)
    step(clock, device, 1, compute=4, wait=2.5)
    device.now += 100  # an evaluation between two steps belongs to none
    step(clock, device, 2, compute=6, wait=0)
    assert clock.busy_s() == pytest.approx(4 + 1 + 6 + 1)
    assert clock.busy_s() == 0
    step(clock, device, 3, compute=1, wait=7)
    assert clock.busy_s() == pytest.approx(2)


def test_without_an_exchange_all_of_a_step_is_its_own(device):
    clock = DeviceClock(torch.device("cuda", 0))
    step(clock, device, 1, compute=4, wait=2, buckets=0)
    assert clock.busy_s() == pytest.approx(3)


def test_a_step_takes_four_events(device):
    clock = DeviceClock(torch.device("cuda", 0))
    for number in range(1, 11):
        step(clock, device, number, compute=4, wait=2, buckets=5, micro_batches=3)
    assert device.made == 40


def test_the_place_is_the_steps_done_and_the_marks_of_the_next_one(device):
    clock = DeviceClock(torch.device("cuda", 0))
    clock.step_issued(20)  # a run that goes on
    assert clock.look() == (20, 0)
    for number in (21, 22):  # of 4 s each: 2 until the gradients are ready, 1 until they are summed, 1
        step(clock, device, number, compute=2, wait=1)
    found = {}
    for device.reached in (-1, 0, 2, 3.5, 4, 5.9, 6, 8):  # one step's end is the next one's beginning
        found[device.reached] = tuple(clock.look())
    assert found == {
        -1: (20, 0),
        0: (20, 1),
        2: (20, 2),
        3.5: (20, 3),
        4: (21, 1),
        5.9: (21, 1),
        6: (21, 2),
        8: (22, 0),
    }
    clock.busy_s()
    step(clock, device, 23, compute=2, wait=1)
    assert clock.look() == (22, 1)


def test_the_step_that_is_being_issued_counts_too(device):
    """The host may stand in it: in a launch, where the device has been given as much as it takes, or in an exchange."""
    clock = DeviceClock(torch.device("cuda", 0))
    step(clock, device, 1, compute=2, wait=1)
    device.now, device.reached = 10, 20
    clock.enter("data")
    assert clock.look() == (1, 1)
    device.now = 12
    clock.enter("gradient sync")
    assert clock.look() == (1, 2)
    device.now = 30
    clock.enter("gradient sync")  # of a bucket that is not ready
    assert clock.look() == (1, 1)


def test_a_place_in_words_and_in_order():
    places = [DevicePlace(117, stage) for stage in range(4)]
    assert sorted([DevicePlace(118, 0), *reversed(places)]) == [*places, DevicePlace(118, 0)]
    assert [str(place) for place in places[:2]] == [
        "has done step 117",
        "has done step 117 and has not finished the gradients of step 118",
    ]
    assert len({*map(str, places)}) == 4


def test_only_the_clocks_own_thread_asks_the_device(device, monkeypatch):
    """To ask may take as long as the main thread stands in CUDA: then the place is not known."""
    clock, done, asking, answer = DeviceClock(torch.device("cuda", 0)), *(threading.Event() for _ in range(3))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)

    def stands(_):
        asking.set()
        answer.wait(20)
        return True

    step(clock, device, 1, compute=2, wait=1)
    monkeypatch.setattr(torch.cuda.Event, "query", stands)
    thread = threading.Thread(target=clock.keep_looking, args=(done, 0.001))
    thread.start()
    try:
        assert asking.wait(20)
        assert clock.place() == (0, 0)
        monkeypatch.setattr(device_clock, "_STALE_S", 0.0)
        assert clock.place() is None
    finally:
        done.set()
        answer.set()
        thread.join()
    assert clock.seen == (1, 0)


def test_a_device_that_has_failed_is_not_asked_any_more(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    clock = DeviceClock(torch.device("cuda", 0))
    step(clock, device, 1, compute=2, wait=1)

    def fails(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda.Event, "query", fails)
    clock.keep_looking(threading.Event(), 0.001)
    assert clock.seen == (0, 0)
