"""The coordinator: a deterministic core that reads the log, and the shell that acts on its decisions."""
