"""A run's folder: its files, and reading them back. Imports no torch."""
