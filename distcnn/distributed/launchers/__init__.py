"""One file per launcher: how it is detected, its variables, and the World that they describe."""
