"""What a checkpoint holds: the one schema of a run's state, and of what it takes to use its weights."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distcnn.checkpoint.file import ValidFile
from distcnn.config.plan import Plan
from distcnn.data.normalize import Normalize
from distcnn.errors import InputError


@dataclass
class Progress:
    """How far a training has come: all that changes besides tensors."""

    step: int = 0  # optimizer steps done
    best_accuracy: float = -1.0
    best_step: int = 0


@dataclass(frozen=True)
class ModelDescription:
    """What it takes to use a network's weights; the metadata of a model.safetensors, and the facts of a model card."""

    config: dict[str, Any]  # the run's settings, nested; in a model.safetensors those of model, precision and views
    classes: tuple[str, ...]
    image_size: int  # pixels
    normalize: Normalize
    step: int
    epoch: int


@dataclass(frozen=True)
class Checkpoint:
    """All that it takes to continue a run, or to use its model."""

    model: dict[str, Any]  # state_dicts
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averages: dict[str, list[Any]]
    progress: Progress
    config: dict[str, Any]  # the run's settings, nested plain values
    plan: Plan
    classes: tuple[str, ...]
    image_size: int  # pixels
    normalize: Normalize

    @property
    def description(self) -> ModelDescription:
        """What it takes to use the model."""
        step, epoch = self.progress.step, self.plan.epoch_of(self.progress.step)
        return ModelDescription(self.config, self.classes, self.image_size, self.normalize, step, epoch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values and the tensors themselves, as the file holds them."""
        return {name: asdict(value) if is_dataclass(value) else value for name, value in vars(self).items()}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Checkpoint":
        """Check what `to_dict` gave. Raises ValueError with the first field that is missing or wrong."""
        try:
            return _ADAPTER.validate_python(tree)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error

    @classmethod
    def load(cls, file: ValidFile) -> "Checkpoint":
        """What a file holds. Raises InputError where it is no checkpoint of a run."""
        tree = file.load()
        try:
            return cls.from_dict(tree)
        except ValueError as error:
            raise InputError(f"{file.path}: not a checkpoint of a run: {error}") from error


def first_problem(error: ValidationError) -> str:
    """The first field that is wrong, and how."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


_ADAPTER = TypeAdapter(Checkpoint)
