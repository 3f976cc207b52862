"""Ranks: launchers, rendezvous, collectives, signals, hang detection and exit codes."""
