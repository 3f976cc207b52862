"""Where metrics go: metrics.jsonl, the console, report.html, Weights & Biases, TensorBoard, trackio; on rank 0 only."""
