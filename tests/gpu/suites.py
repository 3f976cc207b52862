"""The four commands of `make gpu`; the checks put themselves into them."""

from tests.gpu.suite import Suite

CORRECT = Suite("correct", "One process on the GPU: is it right?")
MORE = Suite("more", "The tests without processes beside a GPU, and a search for wrong reads and writes")
RANKS = Suite("ranks", "Several ranks on one GPU, and what befalls them")
SPEED = Suite("speed", "How fast it is, and what takes the time")
