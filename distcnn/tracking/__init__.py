"""Where metrics go: metrics.jsonl, the console, Weights & Biases. Only rank 0 has trackers."""
