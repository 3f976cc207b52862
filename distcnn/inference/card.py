"""The model card of an export: Markdown with YAML front matter, in the format of the Hugging Face Hub.

https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distcnn import __version__
from distcnn.checkpoint.weights import is_safetensors
from distcnn.config.tree import flatten, unflatten
from distcnn.errors import InputError
from distcnn.inference.model import Trained
from distcnn.runs.history import read_history
from distcnn.runs.records import Record, further_metrics

_NEEDED = {"split", "epoch", "loss", "top5_accuracy", "per_class"}
_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn's digits"}
_PATHS = ("output_dir", "data.root", "data.cache_dir")
_ONNX = """```python
import numpy as np, onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)
session = onnxruntime.InferenceSession("model.onnx")
probabilities = session.run(None, {{"images": np.asarray(image)[None]}})[0]  # [1, classes]
```
"""


def card(trained: Trained, given: str, differences: Mapping[str, float], compared: int) -> str:
    """Return the text of README.md.

    `differences` maps each file to the largest difference of its probabilities from PyTorch's, on `compared` images.
    The stem of the path `given` names the model if its config does not.
    """
    name, found = trained.config.name or Path(given).stem, _evaluated(trained)
    settings = flatten(trained.description.config)
    recipe = unflatten({key: value for key, value in settings.items() if key not in _PATHS})
    parts = [
        f"---\n{_yaml(_front_matter(trained, name, found))}---\n",
        f"# {_line(name)}\n",
        _use(trained),
        *([_ONNX.format(size=trained.description.image_size)] if "model.onnx" in differences else []),
        "## Evaluation\n",
        *(_evaluation(found) if found else ["The run's log holds no evaluation of this checkpoint.\n"]),
        f"## Files\n\nCompared with PyTorch's probabilities, in float32, on {compared:,} real images:\n",
        _table("file", "largest difference", ((f"`{file}`", f"{one:.2g}") for file, one in differences.items())),
        f"## Recipe\n\nA config for distcnn {__version__}:\n\n```yaml\n{_yaml(recipe)}```\n",
    ]
    return "\n".join(parts)


def _front_matter(trained: Trained, name: str, found: Record | None) -> dict[str, Any]:
    source = trained.config.data.source
    front: dict[str, Any] = {
        "library_name": "distcnn",
        "pipeline_tag": "image-classification",
        "tags": ["distcnn", "image-classification", trained.config.model.name],
    }
    if source in ("cifar10", "cifar100"):
        front["datasets"] = [f"uoft-cs/{source}"]
    if found:
        front["metrics"] = ["accuracy"]
        dataset = {"type": source, "name": _NAMES.get(source, source), "split": found["split"]}
        metrics = [
            {"type": kind, "value": found[kind]}
            for kind in ("accuracy", "top5_accuracy", "loss", *further_metrics(found))
            if found[kind] is not None
        ]
        task = {"type": "image-classification"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return front


def _use(trained: Trained) -> str:
    described, config = trained.description, trained.config
    size, classes, views = described.image_size, described.classes, config.eval.views
    normalize = described.normalize
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (normalize.mean, normalize.std))
    average = f" and the average over `{views}` views" if views != "one" else ""
    names = ", ".join(map(_line, classes))
    return (
        f"`{config.model.name}` for {size}×{size} images of {len(classes)} classes: {names}.\n\n## Use\n\n"
        f"Input: uint8 `[n, {size}, {size}, 3]`, RGB: an image turned upright, its shorter side resized to {size} "
        f"pixels (bicubic), the centre cropped. Output: float32 probabilities `[n, {len(classes)}]`. Included: the "
        f"normalisation (mean {mean}; standard deviation {std}, of values in 0…1){average}.\n"
    )


def _evaluation(found: Record) -> list[str]:
    further, loss = further_metrics(found), "not finite" if found["loss"] is None else f"{found['loss']:.4f}"
    rows = ((_line(c), "no images" if a is None else f"{a:.2%}") for c, a in found["per_class"].items())
    return [
        f"{found['accuracy']:.2%} ({found['correct']} of {found['total']}) of the {found['split']} images, loss "
        f"{loss}, after step {found['step']} (epoch {found['epoch']}), with the precision and views of the recipe "
        "below.\n",
        *(
            [_table("metric", "value", ((_line(name), f"{one:.4f}") for name, one in further.items()))]
            if further
            else []
        ),
        _table("class", "accuracy", rows),
    ]


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _table(left: str, right: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {left} | {right} |", "| --- | ---: |", *(f"| {one} | {other} |" for one, other in rows)]
    return "\n".join(lines) + "\n"


def _evaluated(trained: Trained) -> Record | None:
    """Return the run's evaluation of the checkpoint's step, None if its log holds no complete one."""
    folder = trained.path.parent if is_safetensors(trained.path) else trained.path.parent.parent
    try:
        evaluations = read_history(folder).evaluations
    except InputError:
        return None
    of_step = (found for found in reversed(evaluations) if found["step"] == trained.description.step)
    return next((found for found in of_step if found.keys() >= _NEEDED), None)


def _line(text: str) -> str:
    """Escape a name so that it breaks neither a table nor the text around it."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in text)
    return " ".join(escaped.split())
