"""Installed packages, and the services that they connect to."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from distcnn.doctor.findings import Finding, fail, ok, warn
from distcnn.doctor.situation import Situation
from distcnn.runs.environment import versions
from distcnn.tracking.wandb_backend import chosen_mode


def package_versions(_: Situation) -> Iterator[Finding]:
    """Check that torchvision is the version built for the installed torch."""
    found = versions()
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    vision, own = found.get("torchvision", "0.0"), found.get("torch", "0.0")
    # They are released in pairs: torch 2.y belongs to torchvision 0.(y + 15).
    expected = f"0.{int(own.split('.')[1]) + 15}" if own.startswith("2.") else None
    if expected and not vision.startswith(f"{expected}."):
        yield fail("versions", text, f"pip install 'torchvision=={expected}.*': the one built for torch {own}")
    else:
        yield ok("versions", text)


def wandb(situation: Situation) -> Iterator[Finding]:
    """Check that W&B's server answers if a run would be tracked online."""
    mode = chosen_mode("auto")
    if mode == "disabled":
        said = f"WANDB_MODE = {situation.environment.get('WANDB_MODE')}"
        yield ok("wandb", f"disabled: {said if 'wandb' in versions() else 'not installed'}")
        return
    if mode == "offline":
        yield ok("wandb", "offline: runs are written to the run's folder; `wandb sync` sends them")
        return
    address = urlsplit(situation.environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=5):
            yield ok("wandb", f"online: {address.hostname} answers")
    except OSError as error:
        text = f"online, but {address.hostname}:{port} does not answer ({error.strerror or error})"
        yield warn("wandb", text, "export WANDB_MODE=offline here, and `wandb sync` later from elsewhere")
