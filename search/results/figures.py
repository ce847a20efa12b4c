"""Pictures of a study: the front, and sensitivity curves of all layers together; PNG bytes, without a display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from search.records import COMPLETE
from search.results.tables import TrialRow
from spaces.granularity import parts_of
from spaces.printable import printable
from spaces.sensitivity import Profile

if TYPE_CHECKING:
    from search.results.comparison import Comparison

COLOURS = {
    "fine-grained": "#1f77b4", "vector": "#1b9e77", "kernel": "#66a61e", "channel": "#d95f02", "mixed": "#7570b3",
    "1:4": "#e7298a", "2:4": "#a6761d", "*:4": "#e6ab02", "*:8": "#666666",
}  # fmt: skip
DOTS_PER_INCH = 120
SHOWN_POINTS = 15
"""How many points of accuracy below the most accurate trial the front's picture shows."""
NAME_LENGTH = 34
"""The most characters of a layer's name that stay readable over a panel."""
NAMED_LINES = 20
"""Up to this many lines, a legend names them all; more would hide the picture."""


def front_png(
    trials: Sequence[TrialRow], front: Sequence[TrialRow], max_size: float, comparison: Comparison | None = None
) -> bytes:
    """Accuracy against size on a log axis: every complete trial faint, the front strong, the limit as a line."""
    figure, axes = new_figure(8, 5)
    complete = [row for row in trials if row.state == COMPLETE]
    for granularity in sorted({row.granularity for row in complete if row.granularity is not None}):
        *removal, mask = parts_of(granularity)
        colour, marker = COLOURS.get(mask, "grey"), "D" if removal else "o"
        style = {"color": colour, "marker": marker}
        points = _points(row for row in complete if row.granularity == granularity)
        axes.scatter(*points, s=16, alpha=0.25, linewidths=0, **style)
        on_front = sorted((row for row in front if row.granularity == granularity), key=lambda row: row.point.size)
        axes.scatter(
            *_points(on_front), s=42, edgecolors="white", **style,
            label=f"{granularity} ({len(on_front)} on the front)", zorder=3,
        )  # fmt: skip
    sizes, accuracies = _points(sorted(front, key=lambda row: row.point.size))
    highest = accuracies >= np.maximum.accumulate(accuracies)
    axes.step(sizes[highest], accuracies[highest], where="post", color="0.4", linewidth=1, zorder=2)
    axes.axvline(max_size * 100, color="0.3", linestyle=":", label=f"limit {max_size:.0%}")
    if comparison is not None:
        axes.axhline(comparison.dense.validation_accuracy * 100, color="0.7", linewidth=1, label="dense")
        int8 = comparison.int8
        axes.plot(int8.size_encoded * 100, int8.validation_accuracy * 100, "kx", label="dense int8")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.xaxis.set_minor_formatter("{x:g} %")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel("size, share of the dense model")
    axes.set_ylabel("validation accuracy of trials, %")
    _zoom(axes, _points(complete)[1], _points(front)[1])
    axes.legend(frameon=False, loc="lower right")
    return png_bytes(figure)


def _points(rows: Iterable[TrialRow]) -> np.ndarray:
    """Sizes and accuracies (2, n) in percent."""
    return np.array([(row.size, row.accuracy) for row in rows], dtype=float).reshape(-1, 2).T * 100


def profile_png(profile: Profile) -> bytes:
    """Accuracy against sparsity, one line a layer, one panel a granularity; dashed without recalibration."""
    figure, panels = new_figure(5 * len(profile.points), 4.2, columns=len(profile.points))
    for axes, (granularity, layers) in zip(np.atleast_1d(panels), profile.points.items(), strict=True):
        shown: dict[tuple[Any, ...], str] = {}
        for layer, points in layers.items():
            shown.setdefault(points, layer)  # layers of a group share their points
        for points, layer in shown.items():
            levels = [0.0, *(p.sparsity for p in points)]
            recalibrated = [profile.reference[1], *(p.recalibrated_accuracy for p in points)]
            (line,) = axes.plot(levels, np.array(recalibrated) * 100, marker=".", label=short(layer))
            if profile.is_recalibrated:
                plain = [profile.dense_accuracy, *(p.accuracy for p in points)]
                axes.plot(levels, np.array(plain) * 100, linestyle="--", linewidth=0.7, color=line.get_color())
        dashed = " (dashed: BatchNorm not recalibrated)" if profile.is_recalibrated else ""
        axes.set_title(f"{granularity}{dashed}", fontsize=9)
        axes.set_xlabel("sparsity of this layer alone")
        axes.set_ylabel("calibration accuracy, %")
        if len(shown) <= NAMED_LINES:
            axes.legend(frameon=False, fontsize=7)
    return png_bytes(figure)


def _zoom(axes: Any, trials: np.ndarray, front: np.ndarray) -> None:
    """Leave out what lies far below the front's most accurate trial, and say how many trials that is."""
    near = front[front > front.max(initial=0.0) - SHOWN_POINTS]
    if len(near):
        low = near.min() - 2
        axes.set_ylim(low, min(max(front.max(), axes.get_ylim()[1]) + 1, 100.5))
        if below := int((trials < low).sum()):
            axes.annotate(f"{below} trials below", (0.01, 0.01), xycoords="axes fraction", fontsize=8, color="0.4")


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of this size in inches, and its axes; `options` as in `Figure.subplots`."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, **options)
    for axes in np.ravel(panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def short(layer: str) -> str:
    """A layer's name for a title: without `.weight`, without its middle if it is long, and without formulas.

    >>> short("backbone.conv3.weight"), short("a" * 20 + "." + "b" * 20 + ".weight")
    ('backbone.conv3', 'aaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbb')
    """
    name = printable(layer.removesuffix(".weight"))
    half = (NAME_LENGTH - 1) // 2
    return literal(name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[-(NAME_LENGTH - 1 - half) :]}")


def literal(text: str) -> str:
    r"""`text` as matplotlib draws it as it stands: no part between dollars is a formula.

    >>> literal("$x$")
    '\\$x\\$'
    """
    return text.replace("$", r"\$")


def png_bytes(figure: Any) -> bytes:
    """The figure as a PNG file that depends only on what is drawn."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a character the font lacks is drawn as a box
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
