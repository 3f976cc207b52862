"""The wait for the device on pretended events: it ends with the device's work, or as soon as a rank is lost."""

import time
from contextlib import nullcontext

import pytest
import torch

from distcnn.distributed.device_wait import wait_for, wait_for_device
from distcnn.training.evaluate import WholeSet, evaluate
from tests.unit.pretend_events import Device


class After:
    """Is come to at the so-manieth look."""

    def __init__(self, looks):
        self.left = looks

    def query(self):
        self.left -= 1
        return self.left <= 0


def test_it_ends_with_the_device(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert wait_for(After(5), lambda: None) >= 0
    assert len(slept) == 4


def test_pauses_grow_with_the_wait_and_stay_short(monkeypatch):
    clock, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waited = wait_for(After(2000), lambda: None)
    assert waited == pytest.approx(sum(slept))
    assert slept[0] == pytest.approx(50e-6)
    assert slept == sorted(slept)
    assert slept[-1] == 0.01
    assert all(pause <= max(sum(slept[:i]) / 100, 50e-6) * 1.001 for i, pause in enumerate(slept))


def test_it_raises_what_is_lost(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    answers = iter([None, None, LookupError("rank 1")])
    with pytest.raises(LookupError, match="rank 1"):
        wait_for(After(1000), lambda: next(answers))


def test_what_is_done_is_not_lost():
    """The device has ended: a rank that has gone since is for the next exchange to find."""
    assert wait_for(After(1), lambda: LookupError()) < 1


def test_an_evaluation_waits_before_it_reads_what_the_device_has_summed(monkeypatch):
    """With a device that never comes to it, no value may be read: that would wait in a place that nothing ends."""
    read = []
    for name in ("cpu", "numpy", "tolist", "item"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: read.append(name))

    def wait():
        raise LookupError("rank 1")

    images, labels = torch.eye(3), torch.arange(3)
    whole = WholeSet(3, 3, ("a", "b", "c"), images.device)
    with pytest.raises(LookupError):
        evaluate(torch.nn.Identity(), [(0, images, labels)], whole, nullcontext, wait=wait)
    assert read == []


def test_only_a_gpu_is_waited_for(monkeypatch):
    device = Device(monkeypatch)
    assert wait_for_device(torch.device("cpu"), lambda: LookupError()) == 0
    assert device.made == 0
    assert wait_for_device(torch.device("cuda", 0), lambda: LookupError()) < 1
    device.reached, device.now = 1.0, 2.0
    with pytest.raises(LookupError):
        wait_for_device(torch.device("cuda", 0), lambda: LookupError())
