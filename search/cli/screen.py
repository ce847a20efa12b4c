"""What stdout is: a terminal of some width, which may be coloured, or a file or pipe, which has all as plain text."""

from __future__ import annotations

import os
import re

NARROWEST = 20
"""Columns that any terminal is taken to have."""
USUAL = 80
"""Columns of a terminal that does not tell."""
STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_KEY = "".join(chr(0xE000 + byte) for byte in os.urandom(8))
"""Begins a mark: what others wrote may have private characters, but not these."""
_MARKS = {style: f"{_KEY}{chr(0xE000 + place)}" for place, style in enumerate(STYLES)}
"""Private characters that stand for styles until all that others wrote is harmless."""
_END = f"{_KEY}{chr(0xE0FF)}"
_CODES = {mark: f"\x1b[{STYLES[style]}m" for style, mark in _MARKS.items()} | {_END: "\x1b[0m"}
_MARKED = re.compile(f"({'|'.join(_CODES)})")


class Screen:
    """Where text goes, such as replies.

    Attributes:
        descriptor: of the stream; that of stdout is moved while a command runs.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.descriptor = descriptor

    @property
    def columns(self) -> int | None:
        """The terminal's width, from COLUMNS if that is set; None where there is no terminal."""
        if not os.isatty(self.descriptor):
            return None
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given):
            return max(int(given), NARROWEST)
        try:
            return max(os.get_terminal_size(self.descriptor).columns or USUAL, NARROWEST)
        except OSError:
            return USUAL

    @property
    def has_colours(self) -> bool:
        """Whether it is a terminal that can show colours, and nobody asked for none (NO_COLOR)."""
        able = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
        return able and os.isatty(self.descriptor)


SCREEN = Screen()


def styled(text: str, style: str) -> str:
    """Text in a style of `STYLES` where stdout has colours: a word, or a line that is no wider than the terminal."""
    return f"{_MARKS[style]}{text}{_END}" if SCREEN.has_colours and text else text


def shown(text: str, on_screen: bool) -> str:
    """`text` as it is printed: nothing that others wrote steers the terminal.

    Args:
        on_screen: it goes to stdout, which is a terminal: lines are broken to its width, and styles are colours.
    """
    from search.wrapping import wrapped  # rich and numpy take a while, and most messages need neither
    from spaces.printable import printable

    if not on_screen:
        return printable(text, lines=True)
    pieces = _MARKED.split(text) if SCREEN.has_colours else [text]
    text = "".join(piece if place % 2 else printable(piece, lines=True) for place, piece in enumerate(pieces))
    text = wrapped(text, SCREEN.columns)
    return _MARKED.sub(lambda mark: _CODES[mark[0]], text) if SCREEN.has_colours else text
