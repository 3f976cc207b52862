"""Checkpoints: whole or absent, damage found, the newest whole one used, foreign files refused unread."""

import pickle
import random
import re
import resource
import zipfile

import pytest
import torch

from distcnn.checkpoint.file import Checkpoints, is_valid, open_valid, seal
from distcnn.checkpoint.state import Checkpoint, Progress
from distcnn.config.plan import Workload, make_plan
from distcnn.config.schema import Config
from distcnn.config.settings import to_dict
from distcnn.data.normalize import Normalize
from distcnn.errors import InputError
from distcnn.files import atomic_file


def state(step=0):
    generator = torch.Generator().manual_seed(step)
    model = {"conv.weight": torch.randn(40, 5, generator=generator), "bn.running_mean": torch.arange(7) / 3}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(9)}}
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": [{"betas": (0.9, 0.99), "lr": 0.1}]},
        "classes": ["a", "ä"],
        "progress": {"step": step, "best": -1.0},
        "none": None,
    }


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def newest(checkpoints):
    """The path of the newest valid one, and the damaged ones."""
    file, damaged = checkpoints.newest_valid()
    return file and file.path, damaged


def record_positions(path):
    """Positions of the bytes inside the records, of each record on its own."""
    positions = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            skip = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
            start = info.header_offset + 30 + skip
            positions.append(range(start, start + info.compress_size))
    return positions


def flip(path, position, mask=0xFF):
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def test_a_round_trip_keeps_every_value(tmp_path):
    saved = state(12)
    path = Checkpoints(tmp_path / "new" / "folder").save(saved, 12, best=False)
    assert path.name == "step-00000012.pt"
    assert is_valid(path)
    loaded = open_valid(path).load()
    assert torch.load(path, weights_only=True).keys() == loaded.keys() == {"format", *saved}
    for part in ("classes", "progress", "none"):
        assert loaded[part] == saved[part]
    assert loaded["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    for key, tensor in saved["model"].items():
        assert torch.equal(loaded["model"][key], tensor)
        assert loaded["model"][key].dtype == tensor.dtype


def test_the_newest_are_kept_and_the_best_outlives_its_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((1, True), (2, True), (9, False), (10, False), (100, False)):
        checkpoints.save(state(step), step, best=best)
    assert names(checkpoints) == ["best.pt", "step-00000010.pt", "step-00000100.pt"]
    assert open_valid(tmp_path / "best.pt").load()["progress"]["step"] == 2
    assert [path.name for path in checkpoints.all()] == ["step-00000100.pt", "step-00000010.pt"]


def test_only_checkpoints_are_counted_and_removed(tmp_path):
    others = ["step-1.pt", "step-00000001x.pt", "notes.txt"]
    for name in [*others, "step-00000001.pt.partial"]:  # the last one a kill has left
        (tmp_path / name).touch()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(), 2, best=False)
    assert names(checkpoints) == sorted([*others, "step-00000002.pt"])


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_starts_again_below_damaged_checkpoints_keeps_what_it_saves(tmp_path, keep):
    """The damaged ones have higher numbers; they must not push out the whole one just written."""
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (10, 12):
        path = checkpoints.save(state(step), step, best=False)
    for path in checkpoints.all():
        flip(path, record_positions(path)[0][3])
    for step in (3, 6):
        assert checkpoints.save(state(step), step, best=False).exists()
        assert newest(checkpoints)[0].name == f"step-{step:08d}.pt"


def test_any_damage_inside_a_record_is_found(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    good, bad = (checkpoints.save(state(step), step, best=False) for step in (1, 2))
    whole = bad.read_bytes()
    rng = random.Random(0)
    inside = record_positions(bad)
    assert len(inside) > 4
    chosen = [position for record in inside for position in (record[0], record[-1], rng.choice(record))]
    chosen += [rng.choice(rng.choice(inside)) for _ in range(60)]
    for position in chosen:
        bad.write_bytes(whole)
        flip(bad, position, 1 << rng.randrange(8))
        assert not is_valid(bad), position
        assert newest(checkpoints) == (good, [bad])
    with pytest.raises(InputError, match=r"step-00000002\.pt: damaged"):
        open_valid(bad).load()


@pytest.mark.parametrize("mask", [0x01, 0x10, 0xFF])
def test_damage_outside_the_records_is_found_or_harmless(tmp_path, mask):
    """Headers and directory: what counts as whole, and so is resumed from, loads with every value right.

    The directory's flags and attributes are tried for each record: an "encrypted" one makes Python's reader raise,
    and PyTorch's takes a "folder" for empty and gives whatever lies in memory.
    """
    path = Checkpoints(tmp_path).save(state(1), 1, best=False)
    whole = path.read_bytes()
    inside = {position for record in record_positions(path) for position in record}
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", whole)]
    assert len(entries) == len(record_positions(path))
    tried = {entry + offset for entry in entries for offset in (8, 10, 38)}
    tried |= set(random.Random(mask).sample(sorted(set(range(len(whole))) - inside), 80))
    for position in sorted(tried):
        path.write_bytes(whole)
        flip(path, position, mask)
        if is_valid(path):
            assert torch.equal(open_valid(path).load()["model"]["conv.weight"], state(1)["model"]["conv.weight"]), (
                position
            )


def test_a_truncated_file_is_not_whole_at_any_length(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    good, middle, torn = (checkpoints.save(state(step), step, best=False) for step in (1, 2, 3))
    whole = torn.read_bytes()
    middle.write_bytes(b"")
    for length in [0, 1, 4, 30, len(whole) // 2, *range(len(whole) - 60, len(whole))]:
        torn.write_bytes(whole[:length])
        assert not is_valid(torn), length
    assert newest(checkpoints) == (good, [torn, middle])
    good.unlink()
    assert newest(checkpoints) == (None, [torn, middle])
    assert newest(Checkpoints(tmp_path / "none")) == (None, [])


def test_a_failed_save_leaves_all_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), 1, best=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for step in (1, 2):
        with pytest.raises(Exception, match="pickle"):
            checkpoints.save(state(step) | {"bad": lambda: None}, step, best=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_whole_file_replaces_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / "x.json.partial").write_text("left by a killed process, and longer than what follows")
    with atomic_file(path) as partial:
        assert partial.parent == path.parent  # a rename within one file system
        partial.write_text("old")
        assert not path.exists()
    assert path.read_text() == "old"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as partial:
        partial.write_text(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


class Executed:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_foreign_file_is_refused_and_its_code_not_run(tmp_path, how):
    path, trace = tmp_path / "foreign.pt", tmp_path / "executed"
    content = {"format": 2, "model": Executed(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"foreign\.pt: .*not a checkpoint"):
        open_valid(path).load()
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3)])
def test_harmless_files_of_others_are_refused_too(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: .*not a checkpoint"):
        open_valid(tmp_path / "other.pt").load()


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = Checkpoints(tmp_path).save({"format": 99}, 1, best=False)
    with pytest.raises(InputError, match=r"format 3 \(found 99\)"):
        open_valid(path).load()


def test_a_missing_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match=rf"{path.name}: no such checkpoint"):
            open_valid(path).load()


class Grows:
    """Ten gigabytes of zeros, when it is unpickled: `weights_only` lets it pass."""

    def __reduce__(self):
        return bytearray, (10**10,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"grows": Grows()}, "bytearray"),
        ({"view": torch.zeros(1).expand(10**11)}, "is larger than its storage"),
        (
            {"deep": [{"view": torch.zeros(3).as_strided((10**6, 10**6), (0, 0))}]},
            "is larger than its storage",
        ),
    ],
)
def test_a_small_file_cannot_become_large_in_memory(tmp_path, content, reason):
    path = Checkpoints(tmp_path).save(content, 1, best=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=reason):
        open_valid(path).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_compressed_records_are_refused(tmp_path):
    path = Checkpoints(tmp_path).save(state(), 1, best=False)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    seal(path)
    assert is_valid(path)
    with pytest.raises(InputError, match="compressed"):
        open_valid(path).load()


def test_what_kills_leave_does_not_add_up(tmp_path, monkeypatch):
    """Each life dies after its first save and before it has cleaned up, in the midst of the next one, at other steps."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 20, 3):
        cleans = iter([checkpoints._clean, lambda *_: None])
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "_clean", lambda *given, cleans=cleans: next(cleans)(*given))
            checkpoints.save(state(step), step, best=False)
        (tmp_path / f"step-{step + 1:08d}.pt.partial").write_bytes(b"half")
    assert len(list(tmp_path.iterdir())) == 3 + 1


def test_a_full_disk_after_damaged_checkpoints_leaves_the_whole_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    whole = checkpoints.save(state(100), 100, best=False)
    for step in (103, 105):
        (tmp_path / f"step-{step:08d}.pt").write_bytes(b"damaged")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(state(110), 110, best=False)
    assert newest(checkpoints)[0] == whole


def of_a_run():
    plan = make_plan(Config(), train_images=64, test_images=16, world_size=1)
    return Checkpoint(
        {"w": torch.ones(2)}, optimizer={"state": {}}, scaler={}, averages={"ema": []}, progress=Progress(7, 0.5, 3),
        config=to_dict(Config()), plan=plan, workload=Workload(1, 1, "cpu", "fp32", 1), classes=("a", "ä"), image_size=16,
        normalize=Normalize((0.5,) * 3, (0.25,) * 3),
    )  # fmt: skip


def test_a_runs_checkpoint_comes_back_from_its_file(tmp_path):
    saved = of_a_run()
    loaded = Checkpoint.load(open_valid(Checkpoints(tmp_path).save(saved.to_dict(), 7, best=False)))
    assert torch.equal(loaded.model.pop("w"), saved.model.pop("w"))
    assert loaded == saved
    assert (loaded.description.step, loaded.description.epoch) == (7, 7)  # a batch is larger than 64 images


def test_a_saved_progress_is_that_of_the_moment():
    saved = of_a_run()
    tree = saved.to_dict()
    saved.progress.step += 1
    assert tree["progress"] == {"step": 7, "best_accuracy": 0.5, "best_step": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"progress": {"step": "x"}}, "progress.step: "), ({"classes": 3}, "classes: "), ({"model": {1: 2}}, "model.1"),
        ({"plan": {}}, "plan.train_images: Field required"), ({"normalize": {"mean": (1, 2)}}, "normalize.mean"),
    ],
)  # fmt: skip
def test_the_first_field_that_is_wrong_is_named(tmp_path, change, said):
    path = Checkpoints(tmp_path).save(of_a_run().to_dict() | change, 1, best=False)
    with pytest.raises(InputError, match=rf"step-00000001\.pt: not a checkpoint of a run: {said}"):
        Checkpoint.load(open_valid(path))
    lacking = of_a_run().to_dict()
    del lacking["averages"]
    with pytest.raises(ValueError, match="averages: Field required"):
        Checkpoint.from_dict(lacking)
