"""What only a machine with an NVIDIA GPU can answer: `make gpu`. docs/gpu.md says how, and what was found."""
