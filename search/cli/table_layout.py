"""How wide the columns of a table may be where a terminal leaves them less room than they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from search.wrapping import width

GAP = 2
"""Columns of a terminal between two of a table."""
READABLE = 24
"""Columns within which a sentence can be read; a name needs half as many more to be told from its like."""
LEAST = 8


class Kind(Enum):
    """What a column holds: it says how the column can be made narrower."""

    NUMBER = "number"  # not at all
    NAME = "name"  # by cutting names in their middle
    PROSE = "prose"  # by breaking its lines between words


@dataclass(frozen=True)
class Column:
    """A column as it would like to be.

    Attributes:
        cells: below its name; `-` is a cell without a value.
        rank: place in the order in which columns are left out, from 0 on; None if it is never left out.
    """

    name: str
    kind: Kind
    cells: Sequence[str]
    rank: int | None = None

    @property
    def natural(self) -> int:
        return max(map(width, (self.name, *self.cells)))

    def least(self, readable: int) -> int:
        """The narrowest it can be made, where names and sentences are to have so much room."""
        if self.kind is Kind.NUMBER:
            return self.natural
        if self.kind is Kind.NAME:
            return min(self.natural, max(readable * 3 // 2, width(self.name)))
        words = (word for cell in self.cells for word in cell.split())
        return min(self.natural, max(readable, width(self.name), *map(width, words)))

    @property
    def is_empty(self) -> bool:
        return all(cell == "-" for cell in self.cells)


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are shown, how wide, and the names of those that are left out."""

    shown: list[Column]
    widths: list[int]
    left_out: list[str]


def laid_out(columns: Sequence[Column], room: int | None) -> Layout:
    """Fit columns into so much room: optional ones without a value go first, and are not told of; then the widest names
    and sentences give way; then optional columns go by rank. None is room for all.
    """
    kept, gone = list(columns), set[str]()
    if room is not None and sum(one.natural for one in kept) + GAP * (len(kept) - 1) > room:
        kept = [one for one in kept if one.rank is None or not one.is_empty]
    while room is not None and _least(kept, READABLE) > room and any(one.rank is not None for one in kept):
        least_wanted = min((one for one in kept if one.rank is not None), key=lambda one: one.rank or 0)
        kept.remove(least_wanted)
        gone.add(least_wanted.name)
    widths = [column.natural for column in kept]
    if room is not None:
        for floors in ([one.least(READABLE) for one in kept], [one.least(LEAST) for one in kept], [1] * len(kept)):
            _shrink(widths, floors, room - GAP * (len(kept) - 1))
    return Layout(kept, widths, [column.name for column in columns if column.name in gone])


def _least(columns: Sequence[Column], readable: int) -> int:
    return sum(column.least(readable) for column in columns) + GAP * (len(columns) - 1)


def _shrink(widths: list[int], floors: Sequence[int], room: int) -> None:
    """Take from the widest that is above its floor until the sum fits, or all are there."""
    while sum(widths) > room:
        above = [place for place, floor in enumerate(floors) if widths[place] > floor]
        if not above:
            return
        widths[max(above, key=widths.__getitem__)] -= 1
