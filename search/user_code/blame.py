"""Whose code raised an error, and where: the difference between a fault of ours and one of the user's network."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

from search.process.interrupts import is_signal

_OTHERS = (
    Path(__file__).parents[2] / "spaces",
    Path(__file__).parents[2] / "pruning",
    Path(__file__).parents[2] / "search",
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Folders of code that is not the user's."""


def place(error: BaseException) -> str | None:
    """`file.py, line 12` of the innermost frame in the user's own code; None if the error never passed through any."""
    found, step = None, error.__traceback__
    while step is not None:
        if is_own(file := step.tb_frame.f_code.co_filename):
            found = f"{Path(file).name}, line {step.tb_lineno}"
        step = step.tb_next
    return found


def told(error: BaseException) -> str:
    """The first line of an error and its place: `ValueError: no such class (net.py, line 12)`, `sys.exit(3) (...)`."""
    if isinstance(error, SystemExit):
        what = f"sys.exit({'' if error.code is None else said_by(lambda: repr(error.code))})"
    else:
        said = next((line for line in said_by(lambda: str(error)).splitlines() if line.strip()), "")[:400]
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    where = place(error)
    return f"{what} ({where})" if where else what


def said_by(text: Callable[[], str]) -> str:
    """The text of somebody else's object, or nothing if making that text raises; only interruptions get through."""
    try:
        return text()
    except BaseException as error:
        if is_signal(error):
            raise
        return ""


def is_own(file: str) -> bool:
    """Whether a code file, named as in a traceback, is the user's."""
    return not file.startswith("<") and not is_others(file)


def is_others(file: str | Path) -> bool:
    """Whether a code file belongs to Python, an installed package or prunefront."""
    return any(Path(file).is_relative_to(folder) for folder in _OTHERS)
