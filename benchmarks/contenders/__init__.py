"""One framework a file, each with `train(job)`: set up as its documentation does, make `job.total` steps."""
