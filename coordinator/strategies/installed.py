"""Server optimisers that other packages bring, as entry points of the group ``fedbus.strategies``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from coordinator.strategies.optimiser import ServerOptimiser
from schemas.job_checks import STRATEGIES, optimisers
from schemas.jobs import ServerSettings


class NoSuchOptimiser(ValueError):
    """A job's server optimiser is not to be had on this machine. The text names cause and remedy."""


def find(name: str) -> Callable[[ServerSettings], ServerOptimiser]:
    """What makes the optimiser ``name``; imports its module. Raises `NoSuchOptimiser`."""
    points = {point.value: point for point in entry_points(group=STRATEGIES, name=name)}
    if len(points) != 1:
        cause = f"installed more than once ({', '.join(sorted(points))})" if points else "not installed here"
        remedy = "uninstall all but one" if points else "install the package that the coordinator had it from"
        raise NoSuchOptimiser(
            f"server optimiser {name!r} is {cause}, and no version of its job can be made without it; there "
            f"are {', '.join(optimisers())}; {remedy}"
        )
    (point,) = points.values()
    try:
        found: Callable[[ServerSettings], ServerOptimiser] = point.load()
    except Exception as error:  # a plug-in's import may fail in any way
        raise NoSuchOptimiser(
            f"server optimiser {name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
            f"repair or reinstall its package"
        ) from error
    missing = [part for part in ("begins", "step") if not hasattr(found(ServerSettings()), part)]
    if missing:
        raise NoSuchOptimiser(
            f"server optimiser {name!r} ({point.value}) lacks {', '.join(missing)}; correct its package"
        )
    return found
