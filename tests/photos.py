"""A model that has hardly been trained, and photos for it."""

from pathlib import Path

import numpy as np
from PIL import Image

import distcnn


def train_model(runs: Path) -> Path:
    """The folder of a run of two steps."""
    return distcnn.train({
        "data": {"source": "synthetic", "args": {"train": 100, "test": 20}, "image_size": 16},
        "train": {"duration": "2step", "batch_size": 50, "threads": 1}, "tracking": {"wandb": "disabled", "console": False, "report": False},
        "model": {"name": "resnet9", "args": {"width": 4}}, "output_dir": str(runs),
    }).folder  # fmt: skip


def write_photos(folder: Path) -> Path:
    """Eleven images of various sizes and kinds, one of them damaged, in two folders."""
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (16 + i, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if i % 2 else "") / f"image {i}.png")
    (folder / "image 4.5.png").write_bytes(b"\x89PNG junk")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("not looked at")
    return folder
