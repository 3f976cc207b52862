"""Durations, every key and its way through YAML, and what two settings, or a setting and the ranks, rule out."""

import re

import pytest

from distcnn.config.keys import KEYS, SECTIONS, documented_keys
from distcnn.config.rules import conflicts
from distcnn.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from distcnn.config.settings import Settings, saved_settings, to_dict, to_yaml, value_at
from distcnn.config.types import parse_duration
from distcnn.errors import InputError
from distcnn.models import MODELS


def found(world_size=1, **sections):
    return list(conflicts(Config(**sections), world_size))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("10ep", (10.0, "ep")), ("0.5ep", (0.5, "ep")), ("500step", (500.0, "step")), (" 200000img ", (200000.0, "img")),
     ("0step", (0.0, "step"))],
)  # fmt: skip
def test_durations(text, parsed):
    assert parse_duration(text) == parsed


@pytest.mark.parametrize("text", ["", "10", "ep", "-1ep", "1.5step", "1.0img", "1e3step", "10 ep", "10epochs", ".5ep"])
def test_not_a_duration(text):
    with pytest.raises(ValueError, match="10ep"):
        parse_duration(text)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_a_batch_that_divides_is_accepted(world):
    assert found(world, train=TrainConfig(batch_size=5 * world)) == []
    assert found(world, train=TrainConfig(batch_size=12 * world, micro_batch=4)) == []


@pytest.mark.parametrize("micro", [None, 1, 7, 20, 300])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 100, 257])
def test_batch_sizes_that_divide_are_listed(batch, world, micro):
    train = TrainConfig(batch_size=batch, micro_batch=micro)
    unit = (micro or 1) * world
    if batch % unit == 0:
        assert found(world, train=train) == []
        return
    ((keys, message),) = found(world, train=train)
    assert keys == (("train.batch_size", "train.micro_batch") if micro else ("train.batch_size",))
    assert f"{world} rank" in message
    listed = re.search(r"that do: ([\d, ]+)", message)
    sizes = [int(size) for size in listed[1].split(", ")]
    assert len(sizes) >= 2
    assert all(size > 0 and size % unit == 0 for size in sizes)
    assert min(size for size in sizes if size > batch) - batch < unit  # the next one above is there
    if batch > unit:
        assert batch - max(size for size in sizes if size < batch) < unit  # and the next one below
    micros = re.search(r"micro-batches of ([\d, ]+)$", message)
    assert (micros is not None) == (batch % world == 0)
    if micros:
        assert all(batch % (int(size) * world) == 0 for size in micros[1].split(", "))


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({"train": TrainConfig(precision="fp16", device="cpu")}, "train.precision train.device"),
        (
            {"train": TrainConfig(device="cpu"), "model": ModelConfig(sync_batchnorm=True)},
            "model.sync_batchnorm train.device",
        ),
        ({"data": DataConfig(mean=(0, 0, 0))}, "data.mean data.std"),
        ({"data": DataConfig(mean=(0, 0, 0), std=(1, 0, 1))}, "data.std"),
        ({"train": TrainConfig(tf32=True, device="cpu")}, "train.tf32 train.device"),
        ({"model": ModelConfig(compile=True), "train": TrainConfig(precision="bf16-master")}, "model.compile train.precision"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
    ],
)  # fmt: skip
def test_a_conflict_names_all_keys_involved(sections, keys):
    ((named, message),) = found(**sections)
    assert named == tuple(keys.split())
    assert message


def test_what_is_near_a_conflict_is_fine():
    assert found(data=DataConfig(mean=(0, 0, 0), std=(1, 1, 1))) == []
    assert found(name="a.b") == []


def test_yaml_and_dict_round_trip(tmp_path):
    arguments = ["--name", "ä 1e3", "--seed=8", "--optim.args.eps", "1e-9", "--model.args={w: [1, {x: null}]}"]
    arguments += [
        "--data.mean=[0.1, 0.2, 0.3]",
        "--data.std=[1, 1, 1]",
        "--data.augment",
        "[flip, {crop: {mode: reflect}}]",
    ]
    arguments += ["--schedule.name=step", "--schedule.args.milestones=[0.5ep, 7step]"]
    config = Settings().read_arguments(arguments).check(1)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert Settings().read_yaml(tmp_path / "config.yaml").check(1) == config
    assert saved_settings(to_dict(config), "step-00000001.pt").check(1) == config


def test_the_key_names_every_built_in_model():
    text = {key: text for key, *_, text in documented_keys()}["model.name"]
    assert text.split(", ")[: len(MODELS.builtin)] == [*MODELS.builtin]


def test_a_saved_setting_names_its_file():
    tree = to_dict(Config())
    tree["train"]["batch_size"] = 0
    with pytest.raises(InputError, match=r"^train\.batch_size = 0 \(step-00000001\.pt\): .*$"):
        saved_settings(tree, "step-00000001.pt").check(1)


LISTS = ("[r, g, b]", "[number, strength]", "names, or {name: {argument: value}}")  # what a key's type is called


def test_every_key_is_documented_with_its_type_and_default():
    documented = {key: (kind, default, text) for key, kind, default, text in documented_keys()}
    assert list(documented) == KEYS
    assert not set(KEYS) & set(SECTIONS)
    for key, (kind, _, text) in documented.items():
        value_at(Config(), key)
        named = re.findall(rf"\b(?:{'|'.join(SECTIONS)})\.\w+", text)
        assert set(named) <= set(KEYS), f"{key} names {named}"
        assert kind.isidentifier() or "|" in kind or kind in LISTS, key
    assert documented["data.mean"][0] == "[r, g, b]"
    assert documented["optim.name"][:2] == ("str", "sgd")
    assert documented["model.compile"][:2] == ("bool", "false")
    assert documented["data.augment"][:2] == ("names, or {name: {argument: value}}", "[]")
