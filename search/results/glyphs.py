"""Characters that the font of pictures has, and how others are written."""

from __future__ import annotations

from functools import cache


def drawable(text: str) -> str:
    r"""`text` with each character that matplotlib's font lacks as its number, as Python writes it, rather than a box.

    >>> drawable("conv ü"), drawable("\u5377")
    ('conv ü', '\\u5377')
    """
    return "".join(one if one in "\n\t" or ord(one) in _characters() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 126 else character


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font  # takes long, and most commands do without

    return frozenset(get_font(findfont(FontProperties())).get_charmap())
