"""Columns of a table in so much room, by hand: which are left out, and how wide the others are."""

from __future__ import annotations

import pytest

from search.cli.table_layout import Column, Kind, laid_out

NUMBER = Column("size", Kind.NUMBER, ["123456"])
NAME = Column("layer", Kind.NAME, ["n" * 50, "short"])
PROSE = Column("reason", Kind.PROSE, ["of words " * 6 + "of six", "-"])
"""6, 50 and 60 wide; a gap is 2."""


@pytest.mark.parametrize(
    ("room", "widths"),
    [
        (None, [6, 50, 60]),
        (120, [6, 50, 60]),
        (119, [6, 50, 59]),
        (90, [6, 40, 40]),  # the widest gives way, whichever it is
        (80, [6, 36, 34]),  # to 36 of a name
        (70, [6, 36, 24]),  # and 24 of a sentence
        (60, [6, 26, 24]),
        (40, [6, 15, 15]),
        (30, [6, 12, 8]),  # then to a third of that
        (20, [5, 5, 6]),  # then of anything
        (7, [1, 1, 1]),
        (3, [1, 1, 1]),
    ],
)
def test_the_widest_gives_way_down_to_what_can_be_read(room, widths):
    found = laid_out([NUMBER, NAME, PROSE], room)
    assert (found.widths, found.left_out) == (widths, [])


@pytest.mark.parametrize(
    ("column", "narrowest"),
    [
        (Column("n" * 40, Kind.NAME, ["n" * 60]), 40),
        (Column("p" * 30, Kind.PROSE, ["a few words " * 5]), 30),
        (Column("why", Kind.PROSE, ["a", "word as long as " + "w" * 28]), 28),
        (Column("why", Kind.PROSE, ["a few"]), 5),
        (Column("層" * 13, Kind.PROSE, ["層 " * 20]), 26),
    ],
    ids=["name", "heading", "word", "short", "wide"],
)
def test_no_column_is_narrower_than_its_heading_and_its_words_where_others_can_give_way(column, narrowest):
    other = Column("of", Kind.PROSE, ["many words " * 9])
    assert laid_out([column, other], narrowest + 2 + 24).widths == [narrowest, 24]


def optional(*ranks: int | None, cells: tuple[str, ...] = ("123456", "-")) -> list[Column]:
    return [Column(f"{'abc'[place]}", Kind.NUMBER, cells, rank) for place, rank in enumerate(ranks)]


@pytest.mark.parametrize(
    ("ranks", "room", "shown", "left_out"),
    [
        ((1, 0, None), 22, "abc", []),
        ((1, 0, None), 21, "ac", ["b"]),
        ((1, 0, None), 14, "ac", ["b"]),
        ((1, 0, None), 13, "c", ["a", "b"]),  # in the order of the columns
        ((1, 0, None), 2, "c", ["a", "b"]),
        ((0, None, 1), 15, "bc", ["a"]),
    ],
)
def test_optional_columns_go_by_rank_and_are_told(ranks, room, shown, left_out):
    found = laid_out(optional(*ranks), room)
    assert ("".join(column.name for column in found.shown), found.left_out) == (shown, left_out)


def test_only_optional_columns_without_any_value_go_untold_and_only_where_room_is_lacking():
    columns = [*optional(1, None, 0, cells=("-", "-")), Column("d", Kind.NUMBER, ["123456", "-"], 2)]
    assert laid_out(columns, 15).shown == columns
    found = laid_out(columns, 14)
    assert ([column.name for column in found.shown], found.widths, found.left_out) == (["b", "d"], [1, 6], [])
