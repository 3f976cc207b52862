"""Saving beside the training: what is saved is the moment of the save; what fails is said, and harms nothing else."""

import threading

import pytest
import torch

from distcnn.training.checkpoint import Checkpoints, load
from distcnn.training.saver import Saver, snapshot


class Slow(Checkpoints):
    """Writes when it is told to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Event()

    def save(self, state, step, *, best):
        assert self.go.wait(60)
        return super().save(state, step, best=best)


def test_what_is_saved_is_the_moment_of_the_save(tmp_path):
    checkpoints, weight = Slow(tmp_path), torch.ones(3)
    saver = Saver(checkpoints, report=lambda _: None)
    saver.save({"w": weight, "deep": [{"w": (weight, 1)}]}, 1, best=True)
    weight += 1  # the training goes on, and the file is not written yet
    assert not list(tmp_path.glob("*.pt"))
    checkpoints.go.set()
    assert saver.wait() == ""
    for name in ("step-00000001.pt", "best.pt"):
        saved = load(tmp_path / name)
        assert torch.equal(saved["w"], torch.ones(3))
        assert torch.equal(saved["deep"][0]["w"][0], torch.ones(3))


def test_one_save_is_in_flight_at_most(tmp_path):
    checkpoints = Slow(tmp_path)
    saver = Saver(checkpoints, report=lambda _: None)
    saver.save({"step": 1}, 1, best=False)
    second = threading.Thread(target=saver.save, args=({"step": 2}, 2), kwargs={"best": False})
    second.start()
    second.join(0.3)
    assert second.is_alive()  # it waits for the first
    checkpoints.go.set()
    second.join()
    saver.wait()
    assert [path.name for path in checkpoints.all()] == ["step-00000002.pt", "step-00000001.pt"]


def test_a_failed_save_is_said_each_time_and_the_next_one_may_succeed(tmp_path):
    events: list[dict[str, object]] = []
    checkpoints = Checkpoints(tmp_path / "folder")
    saver = Saver(checkpoints, report=events.append)
    saver.save({"x": 1}, 1, best=False)
    saver.wait()
    (tmp_path / "folder").rename(tmp_path / "aside")
    (tmp_path / "folder").write_text("not a folder")
    for step in (2, 3):
        saver.save({"x": 1}, step, best=False)
        assert "could not be saved" in saver.wait()
    assert [(event["event"], event["step"]) for event in events] == [("save_failed", 2), ("save_failed", 3)]
    assert all("the training goes on" in str(event["message"]) for event in events)
    (tmp_path / "folder").unlink()
    (tmp_path / "aside").rename(tmp_path / "folder")
    saver.save({"x": 1}, 4, best=False)
    assert saver.wait() == ""
    assert saver.failed == 2
    assert [path.name for path in checkpoints.all()] == ["step-00000004.pt", "step-00000001.pt"]


@pytest.mark.parametrize(("grace", "said"), [(0, 0), (1e-9, 1), (1000, 0)])
def test_too_short_a_grace_is_said_once(tmp_path, grace, said):
    events: list[dict[str, object]] = []
    saver = Saver(Checkpoints(tmp_path), events.append, grace=grace)
    for step in (1, 2):
        saver.save({"x": 1}, step, best=False)
        saver.wait()
    assert [event["event"] for event in events] == ["short_grace"] * said


def test_minutes_are_counted_from_the_last_save(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("distcnn.training.saver.time.monotonic", lambda: now)
    saver = Saver(Checkpoints(tmp_path), report=lambda _: None, minutes=2)
    now += 119
    assert not saver.due()
    now += 1
    assert saver.due()
    saver.save({"x": 1}, 1, best=False)
    assert not saver.due()
    assert not Saver(None, report=lambda _: None, minutes=2).due()  # the other ranks follow rank 0
    saver.wait()


def test_a_snapshot_shares_nothing():
    tensor = torch.arange(3.0, requires_grad=True)
    copy = snapshot({"a": [tensor], "b": (1, "x", None)})
    assert copy["b"] == (1, "x", None)
    assert torch.equal(copy["a"][0], tensor)
    assert not copy["a"][0].requires_grad
    assert copy["a"][0].untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
