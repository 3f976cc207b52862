"""Repeated runs over seeds, and their statistics: the work of `distcnn trials`."""
