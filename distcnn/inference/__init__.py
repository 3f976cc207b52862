"""A trained model, its predictor, and what describes it."""
