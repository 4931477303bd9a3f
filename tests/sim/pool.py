"""Processes that simulate beside each other."""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import structlog


def quiet() -> None:
    """Say nothing of what the parties log: a simulation goes by its facts."""
    logging.disable(logging.CRITICAL)
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent, cache_logger_on_first_use=True)


def pool(jobs: int) -> ProcessPoolExecutor:
    """As many processes, new ones: nothing of ours is shared. They reckon in one thread each: OpenBLAS' own
    would wait busily on the processors of the others."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=quiet)
