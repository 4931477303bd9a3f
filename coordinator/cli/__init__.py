"""The command line of the coordinator: one module per group of commands."""
