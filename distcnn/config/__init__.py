"""Settings: one frozen dataclass a section, rules between them, and how values are read."""
