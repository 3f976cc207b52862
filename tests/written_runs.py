"""The folder of a small run, written by hand: what reads a run's folder is given it, whole or damaged."""

import json

PLAN = {"steps": 3, "world_size": 1, "device": "cpu", "parameters": 70}
START = {
    "kind": "event",
    "event": "started",
    "step": 0,
    "message": "3 steps",
    "time": 1e9,
    "environment": {"plan": PLAN},
}
TRAIN = {"kind": "train", "step": 1, "epoch": 1, "loss": 2.5, "lr": 0.1, "images_per_s": 10.0}
EVAL = {
    "kind": "eval", "split": "test", "step": 3, "epoch": 1, "correct": 3, "total": 4, "accuracy": 0.75, "loss": 1.5,
    "per_class": {"cat": 0.5, "dog": 1.0}, "confusion": [[1, 1], [0, 2]],
}  # fmt: skip
DONE = {"kind": "event", "event": "done", "step": 3, "message": "75.00%", "time": 1e9 + 5}
RECORDS = [START, *({**TRAIN, "step": step} for step in (1, 2, 3)), EVAL, DONE]
CONFIG = "name: x\nseed: 7\noptim: {lr: 0.5}\n"


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def make(folder, records=RECORDS, config=CONFIG):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(lines(records))
    (folder / "config.yaml").write_text(config)
    return folder


def replaced(path, by):
    path.unlink()
    by(path)
