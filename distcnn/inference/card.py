"""The model card of an export: Markdown with YAML front matter, as the Hugging Face hub reads it.

https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distcnn import __version__
from distcnn.errors import InputError
from distcnn.inference.model import Trained, is_safetensors
from distcnn.runs.history import read_history
from distcnn.runs.records import Record

_NEEDED = {"split", "epoch", "loss", "top5_accuracy", "per_class"}
_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn's digits"}


def card(trained: Trained, given: str, differences: Mapping[str, float], compared: int) -> str:
    """The text of README.md, beside files that were `compared` on so many images with these largest differences."""
    found, data = _evaluated(trained), trained.config.data
    name = trained.config.name or Path(given).stem
    front: dict[str, Any] = {
        "library_name": "distcnn",
        "pipeline_tag": "image-classification",
        "tags": ["distcnn", "image-classification", trained.config.model.name],
    }
    if data.source in ("cifar10", "cifar100"):
        front["datasets"] = [f"uoft-cs/{data.source}"]
    if found:
        front["metrics"] = ["accuracy"]
        dataset = {"type": data.source, "name": _NAMES.get(data.source, data.source), "split": found["split"]}
        metrics = [
            {"type": kind, "value": found[kind]}
            for kind in ("accuracy", "top5_accuracy", "loss")
            if found[kind] is not None
        ]
        task = {"type": "image-classification"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    size, views = trained.image_size, trained.config.eval.views
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (trained.normalize.mean, trained.normalize.std))
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---\n",
        f"# {_line(name)}\n",
        f"`{trained.config.model.name}` for {size}×{size} images of {len(trained.classes)} classes: "
        + ", ".join(map(_line, trained.classes)) + ".\n",
        "## Use\n",
        f"Input: uint8 `[n, {size}, {size}, 3]`, RGB: an image turned upright, its shorter side resized to {size} "
        f"pixels (bicubic), the centre cropped. Output: float32 probabilities `[n, {len(trained.classes)}]`. "
        f"Inside: the normalisation (mean {mean}; standard deviation {std}, of values in 0…1)"
        + (f" and the average over `{views}` views" if views != "one" else "") + ".\n",
    ]  # fmt: skip
    if "model.onnx" in differences:
        parts.append(
            "```python\nimport numpy as np, onnxruntime\nfrom PIL import Image, ImageOps\n\n"
            'image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")\n'
            f"image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            'probabilities = session.run(None, {"images": np.asarray(image)[None]})[0]  # [1, classes]\n```\n'
        )
    parts.append("## Evaluation\n")
    if found:
        loss = "not finite" if found["loss"] is None else f"{found['loss']:.4f}"
        parts.append(
            f"{found['accuracy']:.2%} ({found['correct']} of {found['total']}) of the {found['split']} images, loss "
            f"{loss}, after step {found['step']} (epoch {found['epoch']}), as trained: precision "
            "and views are those of the recipe below.\n"
        )
        rows = [f"| {_line(c)} | {'no images' if a is None else f'{a:.2%}'} |" for c, a in found["per_class"].items()]
        parts.append("\n".join(["| class | accuracy |", "| --- | ---: |", *rows]) + "\n")
    else:
        parts.append("No evaluation of this state is on record.\n")
    parts.append(f"## Files\n\nTheir probabilities beside PyTorch's own, in float32, on {compared:,} real images:\n")
    rows = [f"| `{file}` | {difference:.2g} |" for file, difference in differences.items()]
    parts.append("\n".join(["| file | largest difference |", "| --- | ---: |", *rows]) + "\n")
    recipe = yaml.safe_dump(_without_paths(trained.recipe), sort_keys=False, allow_unicode=True)
    parts.append(f"## Recipe\n\nOf distcnn {__version__}:\n\n```yaml\n{recipe}```\n")
    return "\n".join(parts)


def _evaluated(trained: Trained) -> Record | None:
    """The run's evaluation of this very step, if its log has it whole."""
    folder = trained.path.parent if is_safetensors(trained.path) else trained.path.parent.parent
    try:
        evaluations = read_history(folder).evaluations
    except InputError:
        return None
    of_step = (found for found in reversed(evaluations) if found["step"] == trained.step)
    return next((found for found in of_step if found.keys() >= _NEEDED), None)


def _without_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """They are nobody else's."""
    data = {key: value for key, value in recipe.get("data", {}).items() if key not in ("root", "cache_dir")}
    return {key: value for key, value in recipe.items() if key not in ("output_dir", "data")} | {"data": data}


def _line(text: str) -> str:
    """A name that breaks neither a table nor the text around it."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in text)
    return " ".join(escaped.split())
