"""What a proposal knew: which other trials had finished when it was made, and which were running."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class Numbers:
    """A set of trial numbers, held and written as its runs.

    >>> some = Numbers.of([3, 0, 1, 2, 7])
    >>> str(some), 2 in some, 5 in some, len(some), Numbers.read("0-3,7") == some
    ('0-3,7', True, False, 5, True)

    Attributes:
        runs: first and last number of each, rising, with a gap before the next.
    """

    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Numbers:
        """Those of any order."""
        runs: list[tuple[int, int]] = []
        for number in sorted(numbers):
            if runs and number <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], number)
            else:
                runs.append((number, number))
        return cls(tuple(runs))

    @classmethod
    def read(cls, text: str) -> Numbers:
        """The inverse of `str`; raises `ValueError` for what it cannot have written."""
        found = [_RUN.fullmatch(part) for part in text.split(",")] if text else []
        runs = tuple((int(run[1]), int(run[2] or run[1])) for run in found if run is not None)
        before = [-2, *(last for _, last in runs)]
        rising = all(last + 1 < first <= end for last, (first, end) in zip(before, runs, strict=False))
        if None in found or not rising or str(cls(runs)) != text:
            raise ValueError(f"must be rising numbers such as '0-3,7', got {text[:40]!r}")
        return cls(runs)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.runs)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self.runs, number, key=lambda run: run[0])
        return place > 0 and number <= self.runs[place - 1][1]

    def meets(self, other: Numbers) -> bool:
        """Whether any number is in both."""
        return any(first in other for first, _ in self.runs) or any(first in self for first, _ in other.runs)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.runs)


@dataclass(frozen=True)
class Knew:
    """What was known of other trials when one was proposed.

    Attributes:
        finished: those whose results had come in.
        running: those that had been proposed and had no result.
    """

    finished: Numbers
    running: Numbers

    @classmethod
    def of_one_worker(cls, number: int) -> Knew:
        """Where trials are evaluated one after the other: all before this one have finished."""
        return cls(Numbers.of(range(number)), Numbers())

    @classmethod
    def at(cls, number: int, finished: Iterable[int], running: Iterable[int]) -> Knew | None:
        """As a record holds it: None if it is what one worker's study would have known."""
        found = cls(Numbers.of(finished), Numbers.of(running))
        return None if found == cls.of_one_worker(number) else found

    def to_plain(self) -> dict[str, str]:
        """Data for JSON."""
        return {"finished": str(self.finished), "running": str(self.running)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Knew:
        """The inverse of `to_plain`; raises `ValueError` for anything else."""
        if not (isinstance(data, Mapping) and data.keys() == {"finished", "running"}):
            raise ValueError("knew must be an object of finished and running")
        found = {}
        for name, text in data.items():
            try:
                found[name] = Numbers.read(text if isinstance(text, str) else "?")
            except ValueError as error:
                raise ValueError(f"knew's {name} {error}") from None
        return cls(**found)
