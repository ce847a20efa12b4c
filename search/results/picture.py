"""A figure that notebooks show as it is, without pyplot."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from search.results.glyphs import drawable

DOTS_PER_INCH = 120


class Picture(Figure):
    """A figure of matplotlib's that belongs to whoever holds it: pyplot does not know it, and no display is opened."""

    def png(self) -> bytes:
        """A PNG file that depends only on what is drawn."""
        return self.saved("png")

    def saved(self, kind: str) -> bytes:
        """A file of the kind, `png`, `svg` or `pdf`, that depends only on what is drawn."""
        self.spell()
        buffer = io.BytesIO()
        undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        with rc_context({"svg.hashsalt": "prunefront"}):
            self.savefig(buffer, format=kind, metadata=undated[kind])
        return buffer.getvalue()

    def spell(self) -> None:
        """Write characters that the font lacks as their numbers, so that none is drawn as a box, with a warning."""
        for text in self.findobj(Text):
            text.set_text(drawable(text.get_text()))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png()
