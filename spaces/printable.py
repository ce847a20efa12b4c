"""Text that others wrote (names, error messages), made harmless for a terminal, a table or a picture."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 4000
"""The most characters shown of a message; a longer one loses its middle."""
LONGEST_WORD = 200
"""The most characters shown of a value or name in a message."""


def printable(text: object, lines: bool = False) -> str:
    r"""`text` with an escape in place of every character that moves the cursor, hides or reverses text, or is not a
    character.

    Args:
        lines: keep line breaks, for text of several lines.

    >>> print(printable("gone\x1b[2K\r\u202e$x [b]"))
    gone\x1b[2K\r\u202e$x [b]
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if _plain(c) or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in text)


def _plain(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # wide and unbroken spaces


def shortened(text: str, most: int = LONGEST_LINE) -> str:
    """At most `most` characters: of a longer text, its beginning and its end.

    >>> shortened("a" * 20 + "z" * 20, 15)
    'aaaaaaaa ... zz'
    """
    if len(text) <= most:
        return text
    end = (most - 5) // 4
    return f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"
