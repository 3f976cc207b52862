"""What of a training changes besides its tensors, as a checkpoint holds it."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Where the training stands: all that changes besides the engine's tensors."""

    step: int = 0  # optimizer steps done
    best_accuracy: float = -1.0
    best_step: int = 0
