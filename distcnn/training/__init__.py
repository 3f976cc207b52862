"""The training itself: plan, loop, evaluation, checkpoints."""
