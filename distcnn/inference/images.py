"""Find the image files named by paths, folders and glob patterns."""

import glob
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from distcnn.data.sources.folder import files_below

_WILDCARDS = "*?["


def find_images(paths: Iterable[str], problems: list[str]) -> list[str]:
    """Return the files of all paths, folders (recursively) and patterns, in order.

    A path that names no image is added to `problems`.
    """
    known = Image.registered_extensions()
    found: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = sorted(files_below(Path(path)))
            images = [file for file in inside if Path(file).suffix.lower() in known]
            if not images:
                problems.append(f"{path}: a folder without images")
            found += images
        elif Path(path).exists():
            found.append(path)
        elif set(_WILDCARDS) & set(path) and (matching := sorted(glob.glob(path, recursive=True))):  # noqa: PTH207
            found += [file for file in matching if Path(file).is_file()]
        else:
            problems.append(f"{path}: no such file, folder or pattern of files")
    return found
