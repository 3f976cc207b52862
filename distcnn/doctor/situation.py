"""The input of the checks of one rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distcnn.distributed.world import World


@dataclass(frozen=True)
class Situation:
    """How this rank was started, and where a training would write."""

    world: World
    environment: Mapping[str, str]
    output_dir: Path
    cache_dir: Path
