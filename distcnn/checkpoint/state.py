"""The schema of a checkpoint: the state of a run, and the description needed to use its weights."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distcnn.checkpoint.file import ValidFile
from distcnn.config.plan import Plan, Workload
from distcnn.data.normalize import Normalize
from distcnn.errors import InputError


@dataclass
class Progress:
    """Progress of a run: the state that is not tensors."""

    step: int = 0  # optimizer steps done
    best_accuracy: float = -1.0
    best_step: int = 0


@dataclass(frozen=True)
class ModelDescription:
    """What is needed to use a network's weights; the metadata of model.safetensors, and the source of a model card."""

    config: dict[str, Any]  # the run's settings, nested; in model.safetensors only model, precision and views
    classes: tuple[str, ...]
    image_size: int  # pixels
    normalize: Normalize
    step: int
    epoch: int


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run, from which it can be resumed, or its model used."""

    model: dict[str, Any]  # a state_dict, as are the next three
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averages: dict[str, list[Any]]
    progress: Progress
    config: dict[str, Any]  # the run's settings, nested plain values
    plan: Plan
    workload: Workload
    classes: tuple[str, ...]
    image_size: int  # pixels
    normalize: Normalize

    @property
    def description(self) -> ModelDescription:
        """The description needed to use the model."""
        step, epoch = self.progress.step, self.plan.epoch_of(self.progress.step)
        return ModelDescription(self.config, self.classes, self.image_size, self.normalize, step, epoch)

    def to_dict(self) -> dict[str, Any]:
        """Convert to nested plain values and tensors, as stored in the file. Tensors are not copied."""
        return {name: asdict(value) if is_dataclass(value) else value for name, value in vars(self).items()}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Checkpoint":
        """Validate the output of `to_dict`. Raises ValueError, which names the first missing or invalid field."""
        try:
            return _ADAPTER.validate_python(tree)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error

    @classmethod
    def load(cls, file: ValidFile) -> "Checkpoint":
        """Load and validate a file. Raises InputError if it is not the checkpoint of a run."""
        tree = file.load()
        try:
            return cls.from_dict(tree)
        except ValueError as error:
            raise InputError(f"{file.path}: not a checkpoint of a run: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first invalid field."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


_ADAPTER = TypeAdapter(Checkpoint)
