"""A rank's steps on a pretended GPU: what it has done, and how long it was busy without its waits for the others."""

import json

import pytest
import torch

from distcnn.parallel.device_clock import DeviceClock
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


def test_steps_done_are_those_whose_end_the_device_has_reached(device):
    clock = DeviceClock(torch.device("cuda", 0))
    clock.step_issued(20)  # a run that goes on
    assert clock.steps_done() == 20
    for number in (21, 22, 23):  # of 4 s each
        step(clock, device, number, compute=2, wait=1)
    found = {}
    for device.reached in (0, 3.9, 4, 11.9, 12):
        found[device.reached] = clock.steps_done()
    assert found == {0: 20, 3.9: 20, 4: 21, 11.9: 22, 12: 23}
    clock.busy_s()
    step(clock, device, 24, compute=2, wait=1)
    assert clock.steps_done() == 23
    assert json.dumps(clock.steps_done()) == "23"
