"""Counts and lists in the sentences that a person reads."""

from __future__ import annotations

from collections.abc import Iterable


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
