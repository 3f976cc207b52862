"""Settings of a training that goes on until something stops it, and saves only then."""

RARELY = ("--eval.every", "1000ep", "--checkpoint.every", "1000ep", "--train.threads", "1", "--tracking.log_every", "3",
          "--optim.name", "adamw", "--optim.lr", "0.001")  # fmt: skip
ENDLESS = (*RARELY, "--train.duration", "100000step")
