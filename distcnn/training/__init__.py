"""Training: building a run, the loop, evaluation, and the records of both."""
