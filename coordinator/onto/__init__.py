"""A recording onto a bus: its devices to a staging coordinator, or its requests to one agent under test.

Only a re-keyed export can be played: it holds throw-away keys of all parties.
"""


class OntoRefused(Exception):
    """What was named cannot be played. The text says why, and what to do."""


class Silence(Exception):
    """Somebody did not answer in time. The text names whom, and what was waited for."""
