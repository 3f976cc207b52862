"""The settings of a run: their schema, cross-field rules, and reading from YAML and the command line."""
