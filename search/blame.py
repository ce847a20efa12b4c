"""Whose code raised an error, and where: the difference between a fault of ours and one of the user's network."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from types import TracebackType

_OTHERS = (
    Path(__file__).parents[1] / "spaces",
    Path(__file__).parents[1] / "pruning",
    Path(__file__).parents[1] / "search",
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Folders of code that is not the user's."""


def place(error: BaseException) -> str | None:
    """`file.py, line 12` of the innermost frame in the user's own code; None if the error never was in any."""
    found, step = None, error.__traceback__
    while step is not None:
        if _is_own(step):
            found = f"{Path(step.tb_frame.f_code.co_filename).name}, line {step.tb_lineno}"
        step = step.tb_next
    return found


def told(error: BaseException) -> str:
    """An error in one line with its place: `ValueError: no such class (net.py, line 12)`, `sys.exit(3) (...)`."""
    if isinstance(error, SystemExit):
        what = f"sys.exit({'' if error.code is None else repr(error.code)})"
    else:
        said = " ".join(str(error).split())
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    where = place(error)
    return f"{what} ({where})" if where else what


def _is_own(step: TracebackType) -> bool:
    name = step.tb_frame.f_code.co_filename
    return not name.startswith("<") and not any(Path(name).is_relative_to(folder) for folder in _OTHERS)
