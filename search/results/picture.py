"""A figure that notebooks show as it is, without pyplot."""

from __future__ import annotations

import io
import warnings

from matplotlib import rc_context
from matplotlib.figure import Figure

DOTS_PER_INCH = 120


class Picture(Figure):
    """A figure of matplotlib's that belongs to whoever holds it: pyplot does not know it, and no display is opened."""

    def png(self) -> bytes:
        """A PNG file that depends only on what is drawn."""
        return self.saved("png")

    def saved(self, kind: str) -> bytes:
        """A file of the kind, `png`, `svg` or `pdf`, that depends only on what is drawn."""
        buffer = io.BytesIO()
        undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        with warnings.catch_warnings(), rc_context({"svg.hashsalt": "prunefront"}):
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a character the font lacks is drawn as a box
            self.savefig(buffer, format=kind, metadata=undated[kind])
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png()
