"""Mutated files: each loads, or gives one clear error. None runs code, hangs, or grows far beyond its size.

`DISTCNN_FUZZ=500 pytest tests/unit/test_fuzz.py` tries so many of each kind; by default it is a sample.
"""

import json
import os
import resource
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distcnn.checkpoint.file import Checkpoints, open_valid, seal
from distcnn.checkpoint.state import Checkpoint, Progress
from distcnn.checkpoint.weights import load_weights
from distcnn.config.schema import Config, DataConfig, ModelConfig
from distcnn.config.settings import Settings, saved_settings, to_dict, to_yaml
from distcnn.data.sources.folder import folder
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.models.simple import SimpleCNN
from distcnn.tracking.jsonl import JsonlTracker
from distcnn.training.run import Run

EXAMPLES = int(os.environ.get("DISTCNN_FUZZ", "60"))
fuzz = settings(
    max_examples=EXAMPLES, deadline=20_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
EDIT = st.tuples(
    st.sampled_from(["flip", "set", "cut", "insert", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=9),
)
EDITS = st.lists(EDIT, min_size=1, max_size=6)
LIMIT_KIB = 64 * 1024


def mutated(data: bytes, edits) -> bytes:
    for kind, where, given_bytes in edits:
        at = int(where * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ given_bytes[0]]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + given_bytes + data[at + len(given_bytes) :]
        elif kind == "cut":
            data = data[:at] + (data[at + given_bytes[0] :] if given_bytes[0] % 2 else b"")
        elif kind == "insert":
            data = data[:at] + given_bytes + data[at:]
        else:
            data = data[:at] + data[at : at + 200] + data[at:]
    return data


def said(call) -> str:
    """The one clear error; "" if all went well."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def bounded():
    """The process has not grown by more than the limit; the files are small."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * LIMIT_KIB


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def checkpoint(home):
    """A real one, of a run that has begun."""
    data = DataConfig(source="synthetic", args={"train": 64, "test": 16}, image_size=16)
    config = Config(data=data, model=ModelConfig(name="simple_cnn"), output_dir=str(home))
    run = Run(config, World())
    content = Checkpoint(
        run.model.state_dict(), run.optimizer.state_dict(), scaler={}, averages={}, progress=Progress(1, 0.5, 1),
        config=to_dict(config), plan=run.plan, workload=run.workload, classes=run.images.train.classes, image_size=16,
        normalize=run.images.normalize,
    )  # fmt: skip
    path = Checkpoints(home / "good").save(content.to_dict(), 1, best=False)
    Checkpoint.load(open_valid(path))
    return path.read_bytes()


@fuzz
@given(EDITS, st.booleans())
def test_checkpoints(home, checkpoint, edits, sealed):
    """Half of them bear a checksum that is right: what lies behind it has to hold as well."""
    path = home / "mutated.pt"
    path.write_bytes(mutated(checkpoint, edits))
    if sealed:
        with path.open("r+b") as file:
            file.truncate(max(2, path.stat().st_size - 34))
            file.seek(0, os.SEEK_END)
            file.write(b"\0\0")
        seal(path)

    def use():
        found = Checkpoint.load(open_valid(path))
        load_weights(SimpleCNN(10, 16), found.model, path)
        saved_settings(found.description.config, str(path)).check(1)

    assert str(path) in (said(use) or str(path))


@fuzz
@given(EDITS)
def test_configs(home, edits):
    path = home / "mutated.yaml"
    path.write_bytes(mutated(to_yaml(Config()).encode(), edits))
    assert str(path) in (said(lambda: to_dict(Settings().read_yaml(path).check(1))) or str(path))


@fuzz
@given(EDITS)
def test_metrics(home, edits):
    path = home / "metrics.jsonl"
    lines = [{"kind": "train", "step": i, "loss": 1.0 / i} for i in range(1, 20)]
    path.write_bytes(mutated("".join(json.dumps(line) + "\n" for line in lines).encode(), edits))
    tracker = JsonlTracker(path, 10)
    tracker.log({"kind": "train", "step": 11, "loss": float("nan")})
    tracker.finish("done", {})
    steps = [json.loads(line)["step"] for line in path.read_bytes().splitlines()]
    assert steps[-1] == 11
    assert all(step <= 11 for step in steps)


@pytest.fixture(scope="module")
def images(home):
    """A folder of images, and its cache."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (home / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(home / "images" / split / name / "0.png")
    config = DataConfig(source="folder", root=str(home / "images"), cache_dir=str(home / "cache"), image_size=4)
    folder(config, "train")
    (cache,) = (path for path in (home / "cache").iterdir() if path.is_dir())
    return config, cache, (cache / "images.npy").read_bytes()


@fuzz
@given(EDITS)
def test_caches(images, edits):
    config, cache, content = images
    (cache / "images.npy").write_bytes(mutated(content, edits))

    def use():
        found = folder(config, "train")
        assert found.images.shape == (2, 4, 4, 3)
        assert len(found) == 2

    assert str(cache) in (said(use) or str(cache))


def test_a_short_config_cannot_become_large(home):
    """The billion laughs: each line holds the one before it nine times."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)
    ]
    path = home / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="aliases"):
        Settings().read_yaml(path)


def test_deep_nesting_is_an_error(home):
    path = home / "deep.yaml"
    path.write_text("data: " + "[" * 50_000)
    with pytest.raises(InputError, match="nested more than 20 levels"):
        Settings().read_yaml(path)
    shutil.rmtree(home / "good", ignore_errors=True)
