"""On what a run runs, in plain values: for its log, its report, and the doctor."""

import os
import platform
import shlex
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distcnn import __version__

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "accelerate", "wandb")


def versions() -> dict[str, str]:
    """Of distcnn, Python and the packages that a run may use; those that are not installed are left out."""
    found = {"distcnn": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Where and how this process was started."""
    return {
        "command": shlex.join(["distcnn", *sys.argv[1:]]) if _is_distcnn() else shlex.join(sys.argv),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def _is_distcnn() -> bool:
    return os.path.basename(sys.argv[0]) in ("distcnn", "__main__.py")  # noqa: PTH119
