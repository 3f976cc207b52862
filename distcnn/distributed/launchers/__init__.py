"""One file per launcher: what detects it, its variables, and the World that they describe."""
