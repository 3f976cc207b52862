"""distcnn export: every format agrees with PyTorch on real images, at any batch size, or is not kept."""

import json

import numpy as np
import pytest
import torch
import yaml

import distcnn
from distcnn.cli import main
from distcnn.inference.export import FORMATS
from distcnn.inference.export.torchscript import TorchScript
from distcnn.inference.export.verify import check_difference
from distcnn.models import MODELS

ARGS = {"resnet9": {"width": 8}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each built-in model on real digits, some steps long."""
    folder = tmp_path_factory.mktemp("runs")
    for name in MODELS.builtin:
        distcnn.train({
            "name": name, "data": {"source": "digits", "max_train": 200}, "model": {"name": name, "args": ARGS.get(name, {})},
            "train": {"duration": "3step", "batch_size": 20, "threads": 2}, "optim.lr": 0.01, "output_dir": str(folder),
            "eval": {"views": "crops" if name == "simple_cnn" else "one"}, "tracking": {"wandb": "disabled", "console": False, "report": False},
        })  # fmt: skip
    return folder


@pytest.mark.parametrize("name", MODELS.builtin)
def test_every_built_in_model_gives_the_same_probabilities_in_every_format(runs, name, capsys):
    assert main(["export", str(runs / name), "--format", *FORMATS.names(), "--count", "90"]) == 0, (
        capsys.readouterr().err
    )
    out = capsys.readouterr().out
    folder = runs / name / "export"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(FORMATS.load(name).file for name in FORMATS.names()), "README.md"]
    )
    differences = [float(line.split("difference ")[1].split()[0]) for line in out.splitlines() if "difference" in line]
    assert len(differences) == 4
    assert max(differences) <= 1e-4
    assert "on 90 images of digits, test" in out


def test_the_onnx_file_is_all_one_needs(runs, tmp_path):
    import onnxruntime

    folder = runs / "compact_cnn"
    assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path)]) == 0
    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert isinstance(given.shape[0], str)  # dynamic
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".data"] == []


def test_what_differs_is_not_kept(runs, monkeypatch, capsys, tmp_path):
    load = TorchScript.load
    monkeypatch.setattr(TorchScript, "load", lambda path: lambda images: load(path)(images) + 2e-4)
    assert main(["export", str(runs / "simple_cnn"), "--format", "torchscript", "--output", str(tmp_path)]) == 1
    assert "differs from PyTorch's own probabilities by 0.0002" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_a_difference():
    with pytest.raises(distcnn.DistcnnError, match="nan"):
        check_difference(torch.full((3, 2), torch.nan), torch.zeros(3, 2), "x")


def test_the_card_is_one_as_the_hub_reads_it(runs, tmp_path):
    folder = runs / "resnet9"
    assert main(["export", str(folder), "--format", "torchscript", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    evaluation = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-2]
    import huggingface_hub as hub

    data = hub.ModelCard(text).data
    assert data.eval_results[0].metric_type == "accuracy"
    assert data.eval_results[0].metric_value == evaluation["accuracy"]
    assert data.pipeline_tag == "image-classification"
    assert f"({evaluation['correct']} of 359)" in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["train"]["batch_size"] == 20
    assert recipe["model"]["channels_last"] is True  # of the run, not of the export
    assert str(runs) not in text


def test_weights_alone_need_images_to_be_compared_on(runs, tmp_path, capsys):
    weights = runs / "simple_cnn" / "model.safetensors"
    assert main(["export", str(weights), "--format", "torchscript"]) == 2
    assert "--images PATH" in capsys.readouterr().err
    from PIL import Image

    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(tmp_path / "a.png")
    arguments = ["--format", "torchscript", "--images", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main(["export", str(weights), *arguments]) == 0
    assert "on 1 image of" in capsys.readouterr().out


def test_every_wrong_format_is_told_at_once(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--format", "onx", "fractions:Fraction", "distcnn:nothing"]) == 2
    err = capsys.readouterr().err
    for problem in ("--format onx: unknown; did you mean onnx?", "fractions:Fraction: should be a subclass", "nothing"):
        assert problem in err
