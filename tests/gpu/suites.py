"""The three commands of `make gpu`; the checks put themselves into them."""

from tests.gpu.suite import Suite

CORRECT = Suite("correct", "One process on the GPU: is it right?")
RANKS = Suite("ranks", "Several ranks on one GPU, and what befalls them")
SPEED = Suite("speed", "How fast it is, and what takes the time")
