"""What ends the agent, for people: one error out of a task group's many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_failure() -> Iterator[None]:
    """Raise the first error of an exception group instead of the group; the group stays as its cause.

    The agent's tasks fail for one reason; that its neighbours were cancelled then tells nobody anything.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from group
