"""A resume reads its checkpoint once and copies the weights once, as seen by Python's audit and the kernel's count."""

import sys
from pathlib import Path

import torch

import distcnn

SMALL = {
    "name": "run",
    "data": {"source": "synthetic", "args": {"train": 32, "test": 16}, "image_size": 16},
    "model": {"name": "resnet9"}, "checkpoint": {"resume": "auto"}, "optim.lr": 0.01,
    "train": {"duration": "1step", "batch_size": 16, "threads": 1},
    "tracking": {"wandb": "disabled", "console": False, "report": False},
}  # fmt: skip


def bytes_read() -> int:
    """By this process so far, from files and the page cache."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_a_resume_opens_and_reads_its_checkpoint_once_and_copies_the_weights_once(tmp_path, monkeypatch):
    first = distcnn.train(SMALL, {"output_dir": str(tmp_path)})
    (path,) = (first.folder / "checkpoints").glob("step-*.pt")
    opened, copied, watching = list[str](), list[type](), True
    load_state_dict = torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda m, *a, **k: copied.append(type(m)) or load_state_dict(m, *a, **k)
    )
    sys.addaudithook(lambda name, given: opened.append(str(given[0])) if watching and name == "open" else None)
    before = bytes_read()
    distcnn.train(SMALL, {"output_dir": str(tmp_path)})
    read, watching = bytes_read() - before, False
    assert opened.count(str(path)) == 1
    assert path.stat().st_size <= read < 1.2 * path.stat().st_size
    assert [kind.__name__ for kind in copied] == ["ResNet9"]
