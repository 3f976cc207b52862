"""Saving beside the training: what is saved is the moment of the save; what fails is said, and harms nothing else."""

import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distcnn.checkpoint.file import Checkpoints, open_valid
from distcnn.checkpoint.snapshot import Snapshot, pinned_like
from distcnn.checkpoint.writer import CheckpointWriter


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
    writer = CheckpointWriter(checkpoints, report=lambda _: None)
    writer.save({"w": weight, "deep": [{"w": (weight, 1)}]}, 1, best=True)
    weight += 1  # the training goes on, and the file is not written yet
    assert not list(tmp_path.glob("*.pt"))
    checkpoints.go.set()
    assert writer.wait() == ""
    for name in ("step-00000001.pt", "best.pt"):
        saved = open_valid(tmp_path / name).load()
        assert torch.equal(saved["w"], torch.ones(3))
        assert torch.equal(saved["deep"][0]["w"][0], torch.ones(3))


def test_one_save_is_in_flight_at_most(tmp_path):
    checkpoints = Slow(tmp_path)
    writer = CheckpointWriter(checkpoints, report=lambda _: None)
    writer.save({"step": 1}, 1, best=False)
    second = threading.Thread(target=writer.save, args=({"step": 2}, 2), kwargs={"best": False})
    second.start()
    second.join(0.3)
    assert second.is_alive()  # it waits for the first
    checkpoints.go.set()
    second.join()
    writer.wait()
    assert [path.name for path in checkpoints.all()] == ["step-00000002.pt", "step-00000001.pt"]


def test_a_failed_save_is_said_each_time_and_the_next_one_may_succeed(tmp_path):
    events: list[dict[str, object]] = []
    checkpoints = Checkpoints(tmp_path / "folder")
    writer = CheckpointWriter(checkpoints, report=events.append)
    writer.save({"x": 1}, 1, best=False)
    writer.wait()
    (tmp_path / "folder").rename(tmp_path / "aside")
    (tmp_path / "folder").write_text("not a folder")
    for step in (2, 3):
        writer.save({"x": 1}, step, best=False)
        assert "could not be saved" in writer.wait()
    assert [(event["event"], event["step"]) for event in events] == [("save_failed", 2), ("save_failed", 3)]
    assert all("training continues" in str(event["message"]) for event in events)
    (tmp_path / "folder").unlink()
    (tmp_path / "aside").rename(tmp_path / "folder")
    writer.save({"x": 1}, 4, best=False)
    assert writer.wait() == ""
    assert [path.name for path in checkpoints.all()] == ["step-00000004.pt", "step-00000001.pt"]


@pytest.mark.parametrize(("grace", "said"), [(0, 0), (1e-9, 1), (1000, 0)])
def test_too_short_a_grace_is_said_once(tmp_path, grace, said):
    events: list[dict[str, object]] = []
    writer = CheckpointWriter(Checkpoints(tmp_path), events.append, grace=grace)
    for step in (1, 2):
        writer.save({"x": 1}, step, best=False)
        writer.wait()
    assert [event["event"] for event in events] == ["short_grace"] * said


def test_minutes_are_counted_from_the_last_save(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("distcnn.checkpoint.writer.time.monotonic", lambda: now)
    writer = CheckpointWriter(Checkpoints(tmp_path), report=lambda _: None, minutes=2)
    now += 119
    assert not writer.due()
    now += 1
    assert writer.due()
    writer.save({"x": 1}, 1, best=False)
    assert not writer.due()
    assert not CheckpointWriter(None, report=lambda _: None, minutes=2).due()  # the other ranks follow rank 0
    writer.wait()


def test_a_snapshot_shares_nothing():
    tensor = torch.arange(3.0, requires_grad=True)
    taken = Snapshot({"a": [tensor], "b": (1, "x", None)})
    taken.wait()
    copy = taken.state
    assert copy["b"] == (1, "x", None)
    assert torch.equal(copy["a"][0], tensor)
    assert not copy["a"][0].requires_grad
    assert copy["a"][0].untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_on_the_cpu_nothing_of_cuda_is_asked_for(monkeypatch):
    for name in ("Stream", "Event", "stream", "current_stream", "set_device"):
        monkeypatch.setattr(torch.cuda, name, None)
    copy = Snapshot({"w": torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)})
    copy.wait()
    assert copy.state["w"].is_contiguous(memory_format=torch.channels_last)


class Gpu:
    """A pretend device: `calls` is what it was asked for, in order; a copy is made when an event after it is waited for."""

    def __init__(self, monkeypatch):
        self.calls, self.copies, self.thread = [], [], None
        gpu = self

        class Stream:
            def __init__(self, device, name="side"):
                self.device, self.name = device, name

            def wait_stream(self, other):
                gpu.calls.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, blocking=False):
                self.blocking = blocking

            def record(self, stream):
                self.made = len(gpu.copies)
                gpu.calls.append(f"event in {stream.name}")

            def synchronize(self):
                gpu.calls.append(f"wait for the event, blocking={self.blocking}")
                gpu.thread = threading.current_thread().name
                for copy, own in gpu.copies[: self.made]:
                    copy.copy_(own)

        @contextmanager
        def stream(chosen):
            gpu.calls.append(f"in {chosen.name}:")
            yield
            gpu.calls.append("and back")

        def empty(size, *, dtype, pin_memory):
            gpu.calls.append(f"room, pinned={pin_memory}")
            return torch.full((size,), 255, dtype=dtype)  # of floats, NaN

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "training"))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: gpu.calls.append(f"device {device}"))
        monkeypatch.setattr(torch, "empty", empty)

    def tensor(self, values):
        """Values that lie, by what they say, on the second GPU."""
        gpu = self

        class OnGpu(torch.Tensor):
            is_cuda, device = True, torch.device("cuda", 1)

            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                if func is torch.Tensor.copy_ and kwargs:
                    gpu.calls.append(f"copy, {kwargs}")
                    gpu.copies.append((args[0], plain(args[1])))
                    return args[0]
                if func is torch.Tensor.detach:
                    return plain(args[0]).detach().as_subclass(cls)
                known = func in LAYOUT or (func is torch.empty_like and kwargs == {"device": "meta"})
                assert known, f"{func} of a tensor on the GPU: the host would wait for it"
                return func(plain(args[0]), **(kwargs or {}))

        return values.as_subclass(OnGpu)


LAYOUT = (torch.Tensor.numel, torch.Tensor.element_size, torch.Tensor.dtype.__get__)  # the host knows it


def plain(tensor):
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def test_on_cuda_the_host_asks_for_the_copies_and_the_device_makes_them_before_the_next_step(monkeypatch):
    gpu = Gpu(monkeypatch)
    weights = torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    copy = Snapshot({"w": gpu.tensor(weights), "deep": [(gpu.tensor(torch.ones(3)), torch.ones(2))]})
    room, one = "room, pinned=True", "copy, {'non_blocking': True}"
    assert gpu.calls == [
        room, "side waits for training", "in side:", one, one, "and back", "event in side",
        "training waits for side",
    ]  # fmt: skip
    assert copy.state["w"].isnan().all()  # nobody has waited yet
    assert torch.equal(copy.state["deep"][0][1], torch.ones(2))  # what was on the CPU is a plain copy
    assert len(copy.pairs) == 2  # the tensors exist until they are copied
    gpu.calls.clear()
    copy.wait()
    assert gpu.calls == ["device cuda:1", "wait for the event, blocking=True"]
    assert torch.equal(copy.state["w"], weights)
    assert copy.state["w"].stride() == weights.stride()
    assert copy.pairs == []


def test_the_writer_waits_for_the_copies_not_the_training(tmp_path, monkeypatch):
    gpu, checkpoints = Gpu(monkeypatch), Slow(tmp_path)
    writer = CheckpointWriter(checkpoints, report=lambda _: None)
    writer.save({"w": gpu.tensor(torch.ones(3))}, 1, best=False)
    checkpoints.go.set()
    assert writer.wait() == ""
    assert gpu.thread == "distcnn-saver"
    monkeypatch.undo()
    assert torch.equal(open_valid(tmp_path / "step-00000001.pt").load()["w"], torch.ones(3))


def test_a_device_that_fails_in_a_copy_is_a_failed_save(tmp_path, monkeypatch):
    gpu = Gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: (_ for _ in ()).throw(RuntimeError("CUDA error: lost")))
    writer = CheckpointWriter(Checkpoints(tmp_path), report=lambda _: None)
    writer.save({"w": gpu.tensor(torch.ones(3))}, 1, best=False)
    assert "could not be saved (CUDA error: lost)" in writer.wait()
    assert list(tmp_path.glob("*.pt")) == []


LAID_OUT = [
    torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    torch.tensor(7, dtype=torch.int64),
    torch.arange(5).to(torch.bfloat16),
    torch.empty(0, 3),
    torch.tensor([True, False, True]),
    torch.arange(6.0).view(2, 3).t(),
    torch.arange(3.0).expand(2, 3),  # not dense: its copy is
]


def test_pinned_copies_lie_in_one_piece_and_share_nothing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch, "empty", lambda size, **how: asked.append(how) or torch.full((size,), 255, dtype=how["dtype"])
    )
    copies = pinned_like(LAID_OUT)
    monkeypatch.undo()
    assert asked == [{"dtype": torch.uint8, "pin_memory": True}]
    for copy, own in zip(copies, LAID_OUT, strict=True):
        copy.copy_(own)
    for copy, own in zip(copies, LAID_OUT, strict=True):  # after all of them: none has written into another
        assert copy.dtype == own.dtype
        assert torch.equal(copy, own)
        assert copy.stride() == torch.empty_like(own).stride()
        assert copy.untyped_storage().nbytes() == own.numel() * own.element_size()
        assert copy.data_ptr() % 64 == 0
    Checkpoints(tmp_path / "copies").save({"tensors": copies}, 1, best=False)
    Checkpoints(tmp_path / "plain").save({"tensors": [own.clone() for own in LAID_OUT]}, 1, best=False)
    written, plainly = (tmp_path / name / "step-00000001.pt" for name in ("copies", "plain"))
    assert written.read_bytes() == plainly.read_bytes()
    loaded = open_valid(written).load()["tensors"]
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded if len(tensor.shape) and len(tensor)}) == 5
    loaded[0].zero_()
    assert all(torch.equal(one, own) for one, own in zip(loaded[1:], LAID_OUT[1:], strict=True))


def test_the_piece_lives_as_long_as_a_copy_in_it(monkeypatch):
    pieces = []

    def empty(size, **_):
        memory = np.zeros(size, np.uint8)
        pieces.append(weakref.ref(memory))
        return SimpleNamespace(numpy=lambda: memory)

    monkeypatch.setattr(torch, "empty", empty)
    first, last = pinned_like([torch.ones(3), torch.ones(5)])
    del first
    assert pieces[0]() is not None
    del last
    assert pieces[0]() is None
