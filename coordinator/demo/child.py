"""Starts one program of the demonstration so that it never outlives it: ``child PARENT-PID PROGRAM …``.

The kernel sends SIGTERM when the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG; kept by exec).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
ORPHANED = 1


def wrapped(argv: Sequence[str]) -> list[str]:
    """The command line that starts ``argv`` as a child that ends with this process."""
    return [sys.executable, "-P", "-m", __name__, str(os.getpid()), *argv]


def main(arguments: Sequence[str]) -> int:
    """Become the program; returns only if there is no parent any more."""
    parent, *argv = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == int(parent):
        os.execv(argv[0], argv)  # noqa: S606  # our own interpreter, by its full path
    return ORPHANED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
