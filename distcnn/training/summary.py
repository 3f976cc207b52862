"""The final summary of a run, for the console and the trackers."""

from pathlib import Path

from distcnn.checkpoint.state import Progress
from distcnn.config.plan import Plan
from distcnn.runs.records import Record
from distcnn.training.evaluate import Evaluation


def summary_fields(evaluation: Evaluation, state: Progress, plan: Plan, folder: Path) -> Record:
    """Return the final numbers and the paths of the run's files, as displayed."""
    return {
        "step": f"{state.step} of {plan.steps}",
        "accuracy": f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.total} test images)",
        "top 5": f"{evaluation.top5_correct / evaluation.total:.2%}",
        "test loss": f"{evaluation.loss_sum / evaluation.total:.4f}",
        **{f"test {name}": f"{value:.4f}" for name, value in evaluation.metrics.items()},
        "best": f"{state.best_accuracy:.2%} after step {state.best_step}",
        "weakest class": _weakest(evaluation),
        "weights": folder / "model.safetensors",
        "checkpoints": folder / "checkpoints",
        "metrics": folder / "metrics.jsonl",
        "evaluate": f"distcnn evaluate {folder}",
    }


def _weakest(evaluation: Evaluation) -> str:
    known = [(accuracy, name) for name, accuracy in evaluation.per_class().items() if accuracy is not None]
    accuracy, name = min(known)
    return f"{name}, {accuracy:.2%}"
