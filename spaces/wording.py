"""Counts, lists and percentages as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload


def counted(number: int, noun: str, many: str | None = None) -> str:
    """A number with its noun, which takes an s beside any number but 1, or is `many` there.

    >>> counted(1, "trial"), counted(0, "trial"), counted(1200, "byte"), counted(2, "process", "processes")
    ('1 trial', '0 trials', '1,200 bytes', '2 processes')
    """
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def listed(parts: Iterable[str]) -> str:
    """Parts of a sentence as it lists them.

    >>> listed(["size"]), listed(["size", "MACs"]), listed(["accuracy", "size", "MACs"])
    ('size', 'size and MACs', 'accuracy, size and MACs')
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


@overload
def percent(share: float, digits: int = 1) -> str: ...
@overload
def percent(share: None, digits: int = 1) -> None: ...
@overload
def percent(share: float | None, digits: int = 1) -> str | None: ...
def percent(share: float | None, digits: int = 1) -> str | None:
    """A share as percent, with so many digits after the point; None stays None.

    >>> percent(0.9725), percent(0.25, 0), percent(None)
    ('97.2 %', '25 %', None)
    """
    return None if share is None else f"{share * 100:.{digits}f} %"


def limit(share: float) -> str:
    """A limit as percent, with up to 4 digits, as many as were asked for.

    >>> limit(0.25), limit(0.0625)
    ('25 %', '6.25 %')
    """
    return f"{share * 100:.4g} %"
