"""What a command of ``fedbus-agent`` raises: the message goes to the person as it is."""

from __future__ import annotations


class CommandFailed(Exception):
    """A command can't be carried out (exit status 1)."""


class Misused(CommandFailed):
    """A command can't be used as it was typed (exit status 2)."""
