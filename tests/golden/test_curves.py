"""Each small config does what it did when its golden curve was written: at one rank, and at two and three."""

from typing import get_args, get_type_hints

import pytest
import yaml

from distcnn.config.schema import DataConfig, EvalConfig, OptimConfig, TrainConfig
from distcnn.config.types import named
from distcnn.data.augment import OPERATIONS
from distcnn.models import MODELS
from distcnn.optim import OPTIMIZERS, SCHEDULES
from distcnn.training.losses import LOSSES
from tests.golden.curves import FOLDER, NAMES, TOLERANCES, Curve, kept, run
from tests.ranks import run_ranks


def check(name: str, found: Curve) -> None:
    golden, tolerance = kept(name), TOLERANCES[name]
    fix = f"{FOLDER.name}/{name}.txt: if this change is intended, regenerate it by `make golden` and say why"
    assert len(found.losses) == len(found.rates) == len(golden.losses), fix
    assert found.rates == [pytest.approx(rates, rel=1e-6) for rates in golden.rates], fix
    assert found.losses[0] == pytest.approx(golden.losses[0], rel=tolerance.first), fix
    assert found.losses == pytest.approx(golden.losses, rel=tolerance.losses), fix
    assert found.loss == pytest.approx(golden.loss, rel=tolerance.loss), fix
    assert found.total == golden.total, fix
    assert found.correct == pytest.approx(golden.correct, abs=tolerance.counts), fix
    assert found.top5 == pytest.approx(golden.top5, abs=tolerance.counts), fix


@pytest.mark.parametrize("name", NAMES)
def test_a_run_follows_its_golden_curve(name, tmp_path):
    check(name, run(name, tmp_path))


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_follow_the_curve_of_one(ranks, tmp_path):
    program = ["-m", "tests.golden.curves", "--folder", tmp_path]
    outcome = run_ranks(["recipe"], ranks, program=program)
    assert outcome.codes == [0] * ranks, outcome.err
    check("recipe", Curve.read((tmp_path / "recipe.txt").read_text()))


def test_together_they_use_every_option():
    """A new schedule, optimizer, model or kind of augmentation needs a curve; fp16 needs CUDA."""
    configs = [yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in NAMES]
    used = {(section, key, str(value)) for config in configs for section, keys in config.items()
            if isinstance(keys, dict) for key, value in keys.items()}  # fmt: skip
    tables = {"model": MODELS, "optim": OPTIMIZERS, "schedule": SCHEDULES, "loss": LOSSES}
    choices = {(section, "name", name) for section, table in tables.items() for name in table.builtin}
    used |= {("schedule", "name", "constant"), ("optim", "name", "sgd")}  # the defaults
    for section, schema, keys in (
        ("optim", OptimConfig, ["lr_scaling"]),
        ("train", TrainConfig, ["precision", "gradient_sum"]), ("data", DataConfig, ["loader"]),
        ("eval", EvalConfig, ["views"]),
    ):  # fmt: skip
        hints = get_type_hints(schema)
        choices |= {(section, key, choice) for key in keys for choice in get_args(hints[key])}
        defaults = schema()
        used |= {(section, key, str(getattr(defaults, key))) for key in keys}
    assert choices - used == {("train", "precision", "fp16")}
    settings = {(section, key) for section, key, _ in used}
    wanted = {"train": ["ema", "lookahead", "clip_norm", "drop_last"]}
    assert any("label_smoothing" in config.get("loss", {}).get("args", {}) for config in configs)
    assert {(section, key) for section, keys in wanted.items() for key in keys} <= settings
    operations = [named(item) for config in configs for item in config["data"].get("augment", ())]
    assert {name for name, _ in operations} == {*OPERATIONS.builtin}
    told = {(name, key, str(value)) for name, args in operations for key, value in args.items()}
    assert {("crop", "mode", "reflect"), ("flip", "alternating", "True")} <= told
    assert sorted(TOLERANCES) == NAMES
