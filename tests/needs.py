"""What a test needs of the machine."""

import os
import shutil

import pytest


def require(*programs: str, root: bool = False) -> None:
    """Skip where a real component is missing; in the CI, which sets DISTCNN_TEST_ALL, that is a failure."""
    missing = [f"{program} is not installed" for program in programs if shutil.which(program) is None]
    if root and os.geteuid() != 0:
        missing.append("needs root")
    if missing:
        (pytest.fail if os.environ.get("DISTCNN_TEST_ALL") else pytest.skip)("; ".join(missing))
