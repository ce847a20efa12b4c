"""A workload that was given in Python: what a study's files call it, and whether others can find it by that."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.options import BUILT_IN_WORKLOADS

_BUILT_IN = {place: name for name, place in BUILT_IN_WORKLOADS.items()}


class Given:
    """A workload as the function that returns it; two are equal if they hold the same object."""

    def __init__(self, workload: Any) -> None:
        self.workload = workload

    def __call__(self) -> Any:
        return self.workload

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and other.workload is self.workload

    def __hash__(self) -> int:
        return id(self.workload)


def factory_of(given: object) -> Callable[..., Any] | None:
    """What makes the workload: a function as it is, of a workload one that returns it; None of anything else.

    A network is no function here, though it can be called.
    """
    if isinstance(getattr(given, "name", None), str) and callable(getattr(given, "build_model", None)):
        return Given(given)
    if not callable(given) or hasattr(given, "named_parameters"):
        return None
    try:
        inspect.signature(given)
    except ValueError:  # such as of dict
        return None
    return given


def spec_of(factory: Callable[..., Any]) -> str:
    """What studies call the workload of such a function: where it can be found, as `package.module:function` or
    `/folder/file.py:function`; or, of what lives in this program alone, its name in angle brackets.

    A workload, a lambda, a function within another and one of a notebook's cell live in the program alone.

    >>> spec_of(lambda: None)
    '<lambda>'
    """
    if isinstance(factory, Given):
        return f"<{factory.workload.name}>"
    name = getattr(factory, "__name__", type(factory).__name__).strip("<>")
    return _place_of(factory) or f"<{name}>"


def lives_in_python(spec: str) -> bool:
    """Whether only the program that gave it has the workload of this name."""
    return spec.startswith("<") and spec.endswith(">")


def _place_of(factory: Callable[..., Any]) -> str | None:
    name, module = getattr(factory, "__qualname__", ""), sys.modules.get(getattr(factory, "__module__", None) or "")
    if not inspect.isfunction(factory) or getattr(module, name, None) is not factory:
        return None
    file, made = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    written = inspect.unwrap(factory).__code__.co_filename
    if file is None or not Path(file).is_file() or Path(written).resolve() != Path(file).resolve():
        return None  # typed in, or run from a text
    if made is not None and made.parent:
        place = f"{made.name}:{name}"
        return _BUILT_IN.get(place, place)
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else None
