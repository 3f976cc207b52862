"""How fast distcnn is on one NVIDIA GPU, and what takes the time: python -m benchmarks.gpu. See docs/gpu.md."""
