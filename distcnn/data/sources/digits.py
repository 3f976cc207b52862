"""The handwritten digits of scikit-learn."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from distcnn.config.schema import Config
from distcnn.data.sources.folder import stratified_split
from distcnn.data.sources.image_set import ImageSet, Split, check_32_pixels
from distcnn.registry import Problem, checked_by
from distcnn.text import missing


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if needs := missing("digits", "sklearn"):
        yield ("data.source",), needs
    yield from check_32_pixels(config, args)


@checked_by(_check)
def digits(split: Split) -> ImageSet:
    """Load 1,797 digits, 8×8 pixels in 17 grey levels, upscaled to 32×32 RGB; a fifth of each class is for testing."""
    from sklearn.datasets import load_digits  # an optional dependency

    data = load_digits()
    labels = data.target.astype(np.int64)
    chosen = stratified_split(labels, 0.2)[split]
    grey = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    big = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in grey]
    return ImageSet(np.stack(big)[..., None].repeat(3, axis=3), labels[chosen], tuple("0123456789"))
