"""MQTT topic filters: what a subscription with `+` and `#` takes in (MQTT 3.1.1, section 4.7)."""

from __future__ import annotations


def covers(outer: str, inner: str) -> bool:
    """Whether every topic that ``inner`` (a topic or a filter) stands for also matches ``outer``.

    With a topic as ``inner`` this is plain matching; with a filter it says whether a permission for
    ``outer`` includes it. `$` topics are never reached by a leading wildcard.
    """
    if inner.startswith("$") and outer[:1] in {"+", "#"}:
        return False
    outer_levels, inner_levels = outer.split("/"), inner.split("/")
    for index, level in enumerate(outer_levels):
        if level == "#":
            return True  # also for one level less: "a/#" takes in "a"
        if index >= len(inner_levels):
            return False
        other = inner_levels[index]
        if other == "#" or (level not in {"+", other}):
            return False
    return len(outer_levels) == len(inner_levels)
