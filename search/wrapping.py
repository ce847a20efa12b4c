"""Text in the width of a terminal: lines broken between words, and names that are too long cut in their middle."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len

INDENT = "  "
"""Of what a line goes on with."""
NOTEBOOK = 88
"""Columns of text in a notebook, which would break longer lines anywhere."""
_PERCENT = re.compile(r"(?<![\d.])[\d.]+(?: ± [\d.]+)? %")
_TOGETHER = re.compile(
    r"`[^`]+`|(?:or: )?(?<![\w./-])(?:prunefront|pip install) (?:(?!  |; |, ).)+"
    r"|(?<!\S)\S+ \(\d[\d,]* bytes\)"
    rf"|(?:\b(?:front of|of|MACs) )?(?:{_PERCENT.pattern}|\d[\d,.]*(?: (?:bits?|bytes|points|min|m?s)\b)?)"
)
"""What stays in one piece: a command that is to be copied, up to what ends it in a sentence; a file with its bytes; a
number with its unit, and with a word before it that says of what it is."""
_HELD = "\U000f0000"
"""Stands for the spaces of such a piece; printable text has none of it, and it is as wide as a space."""
_ENTRY = re.compile(r" *\S{1,10}  +")
"""A word with a gap behind it, below which the rest of its line goes on."""
_STYLES = re.compile("[\ue000-\uf8ff]")


def wrapped(text: str, columns: int | None) -> str:
    """`text` with its lines broken between words at so many columns, but no command, path or other word in its middle.

    A word that is wider than that stays whole on a line of its own. None for `columns` leaves all as it is. Characters
    of private use, which terminals may be told styles by, take no room.

    >>> print(wrapped("Next: prunefront view --root elsewhere    or stop", 20))
    Next:
      prunefront view --root elsewhere
      or stop
    """
    if columns is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _lines(line, columns))


def width(text: str) -> int:
    """Columns that one line takes."""
    return cell_len(_STYLES.sub("", text))


def _lines(line: str, columns: int) -> list[str]:
    if width(line) <= columns:
        return [line]
    held = held_together(line, _TOGETHER)
    margin = line[: len(line) - len(line.lstrip(" "))]
    entry = _ENTRY.match(_STYLES.sub("", line))
    indent = " " * cell_len(entry[0]) if entry else margin + INDENT
    lines = [margin]
    for gap, word in re.findall("( *)([^ ]+)", held.strip(" ")):
        if lines[-1].strip() and width(lines[-1] + gap + word) > columns:
            lines.append(indent + word)
        else:
            lines[-1] += gap + word
    return [let_go(one) for one in lines]


def held_together(text: str, pieces: re.Pattern[str] = _PERCENT) -> str:
    """Text for what breaks lines at spaces: some pieces, by default a number and its %, have other characters there."""
    return pieces.sub(lambda found: found[0].replace(" ", _HELD), text)


def let_go(text: str) -> str:
    """The inverse of `held_together`."""
    return text.replace(_HELD, " ")


def packed(parts: Iterable[str], columns: int, between: str = "  |  ") -> list[str]:
    """Short statements side by side, in as few lines as they fit in; one that is too long is broken between words.

    >>> packed(["front 3", "4 of 8 trials", "about 12 s left"], 28)
    ['front 3  |  4 of 8 trials', 'about 12 s left']
    """
    lines: list[str] = []
    for part in parts:
        if lines and width(lines[-1] + between + part) <= columns:
            lines[-1] += between + part
        else:
            lines += _lines(part, columns)
    return lines


def cut(name: str, most: int) -> str:
    """A name of at most so many columns, 1 or more: of a longer one its beginning and its end, which tell more than the
    middle.

    >>> cut("backbone.layer3.0.conv1.weight", 19)
    'backbone.…v1.weight'
    """
    if cell_len(name) <= most:
        return name
    begin, end = (most - 1) // 2, len(name) - most // 2
    while cell_len(name[:begin]) > (most - 1) // 2:
        begin -= 1
    while cell_len(name[end:]) > most // 2:
        end += 1
    return f"{name[:begin]}…{name[end:]}"
