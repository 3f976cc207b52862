"""Trackers, on rank 0 only: metrics.jsonl, the console, report.html and tracking libraries. Imports no torch."""

from distcnn.registry import Registry

# Each is called with a TrackedRun and the user's arguments in its own thread; see `backend.Backend`.
TRACKERS = Registry(
    "trackers",
    {
        "wandb": "distcnn.tracking.wandb_backend:open_wandb",
        "tensorboard": "distcnn.tracking.tensorboard_backend:TensorBoardBackend",
        "trackio": "distcnn.tracking.trackio_backend:TrackioBackend",
    },
    given=("run",),
)
