"""The command line: one sub-command per file, no logic."""
