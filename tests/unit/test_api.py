"""The Python API: what is loaded is what was evaluated."""

import json

import numpy as np
import pytest
import torch

import distcnn
from distcnn.data.sources import load as sources
from distcnn.data.sources.image_set import ImageSet
from distcnn.errors import InputError
from distcnn.inference import model as trained
from distcnn.training.train import Result

SMALL = {
    "data": {"source": "synthetic", "args": {"train": 200, "test": 101}, "image_size": 16},
    "train": {"duration": "4step", "batch_size": 50, "ema": 0.9, "threads": 1},
    "model": {"name": "resnet9", "args": {"width": 4}}, "eval": {"views": "mirror"},
    "tracking": {"wandb": "disabled", "console": False, "report": False}, "optim.lr": 0.05,
    "checkpoint": {"every": "1step", "keep": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return distcnn.train(SMALL, {"output_dir": str(tmp_path_factory.mktemp("runs")), "seed": 3})


def test_every_name_is_there():
    assert {name: getattr(distcnn, name).__name__ for name in distcnn.__all__} == {n: n for n in distcnn.__all__}
    with pytest.raises(AttributeError, match="nothing"):
        _ = distcnn.nothing


def test_what_a_checkpoint_and_the_exported_weights_evaluate_to_is_what_the_run_reported(result):
    expected = result.evaluation.record()
    where = {f"data.{key}": value for key, value in SMALL["data"].items()}
    for path, overrides in ((result.folder, {}), (result.folder / "model.safetensors", where)):
        found = distcnn.evaluate(path, overrides)
        assert {key: found[key] for key in expected} == expected
        assert (found["step"], found["epoch"]) == (4, 1)


def test_the_moving_average_is_loaded_not_the_last_weights(result):
    loaded = dict(distcnn.load_model(result.folder).model.named_parameters())
    folder = result.folder / "checkpoints"
    saved = [torch.load(folder / f"step-{step:08d}.pt", weights_only=True) for step in (1, 2, 3, 4)]
    for i, (name, weights) in enumerate(loaded.items()):
        average = saved[0]["averages"]["ema"][i]
        for step, at in enumerate(saved[1:], start=2):
            decay = min(0.9, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * at["model"][name]
        torch.testing.assert_close(weights.detach(), average)
        assert not torch.equal(weights, saved[-1]["model"][name])


def test_a_predictor_gives_the_probabilities_that_the_evaluation_counted(result):
    test_images = _test_images(result)
    predictor = distcnn.Predictor(result.folder)
    best = predictor.probabilities(test_images.images).argmax(dim=1).numpy()
    assert (best == test_images.labels).sum() == result.evaluation.correct


def test_bad_models_are_bad_input(tmp_path, result):
    nowhere, empty, junk = tmp_path / "no", tmp_path / "empty", tmp_path / "junk.pt"
    empty.mkdir()
    junk.write_bytes(b"junk")
    for path in (nowhere, empty, junk):
        with pytest.raises(InputError, match=path.name):
            distcnn.load_model(path)
    weights = tmp_path / "foreign.safetensors"
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="no metadata of distcnn"):
        distcnn.load_model(weights)
    save_file({"w": torch.zeros(1)}, weights, {"distcnn": json.dumps({"model": {}})})
    with pytest.raises(InputError, match="Field required"):
        distcnn.load_model(weights)
    with pytest.raises(InputError, match=r"train\.devise .overrides.: unknown key"):
        distcnn.load_model(result.folder, {"train.devise": "cpu"})


def test_a_file_of_weights_holds_no_paths(result):
    with (result.folder / "model.safetensors").open("rb") as file:
        assert str(result.folder.parent).encode() not in file.read()


def test_a_config_and_a_mapping_are_the_same_run(result, tmp_path):
    config = trained.load_model(result.folder).config
    again = distcnn.train(config, {"output_dir": str(tmp_path)})
    assert np.array_equal(again.evaluation.confusion, result.evaluation.confusion)
    assert again.evaluation.loss_sum == result.evaluation.loss_sum


def _test_images(result: Result) -> ImageSet:
    return sources.load(trained.load_model(result.folder).config.data, "test")


def test_a_model_is_not_compiled_for_a_single_pass(result, monkeypatch):
    """Whatever its run was: the compiler would take longer than it saves, and again for the last, smaller batch."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **_: compiled.append(model))
    found = distcnn.evaluate(result.folder, {"model.compile": True})
    assert found["correct"] == result.evaluation.correct
    distcnn.Predictor(distcnn.load_model(result.folder, {"model.compile": True})).probabilities(
        _test_images(result).images[:3]
    )
    assert compiled == []
    distcnn.train(SMALL, {"output_dir": str(result.folder.parent), "name": "compiled", "model.compile": True})
    assert len(compiled) == 1
