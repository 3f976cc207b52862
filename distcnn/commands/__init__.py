"""One thin file a subcommand."""
