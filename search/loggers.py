"""The loggers of these packages, which commands and notebooks read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = ("search", "pruning", "spaces")


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """While it lasts, what these packages log is given to `handler`."""
    loggers = [logging.getLogger(package) for package in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
