"""`kill_saves.py FOLDER KILLS`: processes that do nothing but save, each killed at a random moment of it."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from distcnn.checkpoint.file import Checkpoints

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(0)
checkpoints = Checkpoints(folder, keep=2)
most, steps, torn = 0, [], 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        step = max((int(path.stem[5:]) for path in checkpoints.all()), default=0)
        while True:
            step += 1
            checkpoints.save({"step": step, "x": torch.full((200_000,), float(step))}, step, best=step % 2 == 0)
    time.sleep(chance.uniform(0.005, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    most = max(most, len(left))
    torn += any(name.endswith(".partial") for name in left)
    newest, damaged = checkpoints.newest_valid()
    assert not damaged
    if newest is not None:
        state = newest.load()
        assert float(state["x"][0]) == state["step"] == int(newest.path.stem[5:])
        steps.append(state["step"])
assert steps == sorted(steps), "an older one was found after a newer one"
print(f"{kills} kills, {torn} within a file, newest step {steps[-1]}, at most {most} files")
