"""The worker's end of its pipes: orders in, replies out. Without PyTorch, so that its lack can be told."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from schemas import work

CarryOut = Callable[[work.AnyOrder], work.Reply]


def serve(carrier: Callable[[select.poll], CarryOut]) -> None:
    """Have orders carried out, one by one, until our input ends. ``carrier`` gets what polls for that end.

    From here on standard input is empty and standard output is standard error.
    """
    orders, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    parent = select.poll()
    parent.register(orders, select.POLLIN)
    carry_out = carrier(parent)
    with os.fdopen(orders, "rb") as source, os.fdopen(replies, "wb") as target:
        while head := source.read(work.FRAME.size):
            (size,) = work.FRAME.unpack(head)
            order = work.decode_order(source.read(size))
            target.write(work.encode(carry_out(order)))
            target.flush()


def serve_without_torch(cause: ImportError) -> None:
    """Answer every order with why it can't be carried out, and the remedy."""
    text = f"PyTorch can't be used here ({cause}); `pip install 'fedbus[agent]'` brings it"
    serve(lambda _parent: lambda _order: work.problem("task", text))
