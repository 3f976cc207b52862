"""Host, platform and package versions, as plain values: for the log, the report and the doctor."""

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
    """Return the versions of distcnn, Python and the optional packages that are installed."""
    found = {"distcnn": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Describe the command, host and versions of this process."""
    return {
        "command": shlex.join(["distcnn", *sys.argv[1:]]) if _is_distcnn() else shlex.join(sys.argv),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def _is_distcnn() -> bool:
    return os.path.basename(sys.argv[0]) in ("distcnn", "__main__.py")  # noqa: PTH119
