"""The pictures of a report: each drawn once, as PNG and as SVG, with the places of what a reader can point at."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.metric import Metric
from search.records import COMPLETE, TrialRecord
from search.report.growth import PARTS, Growth
from search.report.influence import Influence
from search.report.prediction import PredictionQuality
from search.results.cells import MIXED
from search.results.comparison import Comparison
from search.results.figures import (
    MARKERS,
    Mark,
    Named,
    axis_label,
    compared_marks,
    literal,
    new_figure,
    png_bytes,
    profile_figure,
    short_name,
    shorts,
    size_scale,
    value_ticks,
    zoom,
)
from search.results.state import StudyState
from search.results.tables import TrialRow
from search.store.outline import NetworkOutline
from spaces.bits import FLOAT_BITS
from spaces.granularity import CHOICES
from spaces.sensitivity import Profile
from spaces.wording import counted, percent

INK, QUIET = "#222222", "#8a8a8a"
BARS, PALE = "#0072b2", "#b9d7ea"
COLOUR_SCALE = "cividis"
"""From dark to light in the same order for every eye, and without colours."""
MOST_LAYERS, MOST_TRIALS = 80, 20
"""Rows and columns of the picture of layers; of more layers, those with the most parameters are shown."""
WRITTEN_CELLS = 200
"""Up to this many cells of it have their number written in them."""
SHOWN_LAYERS = 10
"""Layers in the picture of what mattered."""
MANY = 400
"""Up to so many trials are each a shape of their own in a page; more are one image, which is smaller."""
SHARP = 144
"""Dots an inch of such an image: three for each two pixels of a page."""
LINES = (("-", "#000000", "o"), ("--", "#d55e00", "s"), (":", "#0072b2", "^"))
"""Of the parts of the limit in the picture of growth."""
Place = tuple[Any, TrialRow, float, float]
"""A panel, a trial, and where it lies in the panel's data."""
NAME_PLACES = (
    ("center", (0, -14)), ("center", (0, 14)), ("left", (9, 0)), ("right", (-9, 0)), ("center", (0, -26)),
    ("center", (0, 26)), ("left", (9, -20)), ("right", (-9, -20)), ("left", (9, 20)), ("center", (0, -38)),
)  # fmt: skip
"""Where a name may stand beside its point: its alignment, and its offset in points of type."""


@dataclass(frozen=True)
class Spot:
    """Where a trial lies in a picture: shares of its width from the left, and of its height from the top."""

    trial: int
    across: float
    down: float


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: of its file, without ending.
        title: what is to be seen.
        alt: the same for those who cannot see it, with its main numbers.
        width: in pixels of the PNG.
        height: likewise.
        spots: trials that can be pointed at.
    """

    name: str
    title: str
    alt: str
    png: bytes
    svg: str
    width: int
    height: int
    spots: tuple[Spot, ...] = ()


def front_picture(state: StudyState, pointed: Collection[int]) -> Picture | None:
    """Accuracy against stored size, and against the study's third objective; None without a complete trial.

    Args:
        pointed: numbers of the trials that can be pointed at.
    """
    complete = [row for row in state.rows if row.state == COMPLETE]
    if not complete:
        return None
    front, by_latency = state.front, state.config.cost == "latency"
    cost = "latency" if by_latency else "MACs"
    figure, (left, right) = new_figure(10.5, 5.6, columns=2, sharey=True)
    on_front = {row.trial for row in front}
    colours = _bit_colours(complete)
    places: list[Place] = []
    for row in sorted(complete, key=lambda row: row.trial in on_front):
        size, accuracy = row.point
        for axes, across in ((left, size), (right, row.latency if by_latency else row.macs)):
            if across is not None:
                places.append((axes, row, across * 100, accuracy * 100))
    _draw_trials(places, colours, on_front)
    _limit_and_dense(state, left, right)
    comparison = state.comparison
    marks = compared_marks(comparison, state.scores, state.config.size_metric) if comparison else []
    for mark in marks:
        left.plot(
            *np.array(list(mark.points)).T * 100, mark.style, mfc="none", ms=9, mew=1.6, label=mark.label, zorder=4
        )
    if comparison is not None:
        _finals_by_cost(right, state, comparison, by_latency)
    size_scale(left)
    left.margins(x=0.12)
    shown = np.array([row.point.accuracy for row in front or complete]) * 100
    named = zoom(left, np.array([row.point.accuracy for row in complete]) * 100, shown, marks)
    value_ticks(left, state.unit)
    left.set_title("Stored size: smaller is further left", fontsize=11)
    right.set_title(f"{cost[:1].upper()}{cost[1:]}: less is further left", fontsize=11)
    left.set_xlabel(f"{state.config.size_metric} size, share of the dense model's (log scale)", fontsize=10)
    predicted = ", predicted" if by_latency else ""
    right.set_xlabel(f"{cost}{predicted}, % of the dense model's", fontsize=10)
    left.set_ylabel(axis_label(state.unit, "validation"), fontsize=10)
    handles = [*_granularity_handles(complete), *_bit_handles(colours), *_other_handles(left, right)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    title = f"The front: {state.unit.name} against stored size and against {cost}"
    _entitle(figure, title)
    _name(left, named, [*_places(marks), *(place[2:] for place in places if place[0] is left)])
    count = len(front)
    alt = f"{len(complete)} complete trials, of which {count} are on the front, in two panels that share accuracy."
    if front:
        first, last = front[0], min(front, key=lambda row: row.point.size)
        alt += f" The front goes from {_in_words(first, state.unit)} down to {_in_words(last, state.unit)}."
    return _picture("front", title, alt, figure, [place for place in places if place[1].trial in pointed])


def growth_picture(growth: Growth, state: StudyState) -> Picture:
    """The most accurate networks so far within the limit and parts of it, and the front's volume."""
    figure, (upper, lower) = new_figure(8.5, 6, rows=2, sharex=True)
    for (style, colour, marker), part in zip(LINES, PARTS, strict=True):
        label = f"within {part * state.max_size * 100:.3g} % of the size"
        values, every = np.array(growth.best[part]) * 100, max(len(growth.finished) // 12, 1)
        upper.step(
            growth.finished,
            values,
            style,
            where="post",
            color=colour,
            marker=marker,
            ms=4,
            markevery=every,
            label=label,
        )
    value_ticks(upper, state.unit)
    upper.set_ylabel(f"best {axis_label(state.unit, 'validation')}", fontsize=10)
    upper.set_title(f"The best {literal(state.unit.name)} so far", fontsize=11)
    lower.step(growth.finished, np.array(growth.volume) * 100, where="post", color=BARS)
    lower.set_title("How much of the front's volume was found", fontsize=11)
    lower.set_ylabel("volume, % of the last front's", fontsize=10)
    lower.set_ylim(0, 105)
    lower.set_xlabel("finished trials", fontsize=10)
    for axes in (upper, lower):
        if growth.initial:
            axes.axvspan(0, growth.initial, color="0.93", zorder=0, label="known allocations the study begins with")
        axes.set_xlim(0, growth.finished[-1] + 0.5)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    ninety = next(
        n for n, share in zip(growth.finished, growth.volume, strict=True) if share >= 0.9 or n == growth.finished[-1]
    )
    alt = f"After {ninety} of {growth.finished[-1]} finished trials, 90 % of the last front's volume had been found."
    return _picture("growth", "How the front grew with finished trials", alt, figure)


def sensitivity_picture(profile: Profile, outline: NetworkOutline | None, unit: Metric) -> Picture:
    """One layer pruned or rounded at a time."""
    figure = profile_figure(profile, unit, outline.parameter_shares() if outline else {})
    least: dict[str, float] = {}
    for by in profile.points.values():
        for layer, points in by.items():
            least[layer] = min([least.get(layer, 1.0), *(p.recalibrated_accuracy for p in points)])
    named = sorted(least, key=lambda layer: least[layer])[:3]
    sensitive = ", ".join(short_name(layer) for layer in named)
    alt = f"Curves of {counted(len(least), 'layer')}. The most sensitive: {sensitive}."
    return _picture("sensitivity", "What pruning or rounding one layer alone costs, nothing trained", alt, figure)


def layers_picture(state: StudyState, outline: NetworkOutline | None) -> Picture | None:
    """Of the front's members, what is gone from each layer, and bits where layers differ; None without a front."""
    chosen = _spread(sorted(state.front, key=lambda row: row.point.size), MOST_TRIALS)
    if not chosen:
        return None
    records = [state.records[row.trial] for row in chosen]
    names = [layer.name for layer in outline.layers] if outline else list(records[0].policy.sparsity)
    shares = outline.parameter_shares() if outline else {}
    shown = _largest(names, shares)
    gone: np.ndarray = np.array([[record.result.achieved.get(name, 0.0) for record in records] for name in shown]) * 100
    bits = np.array([[_bits(record, name) for record in records] for name in shown])
    mixed = any(isinstance(row.bits, Mapping) for row in chosen)
    widths = [2.2] * bool(shares) + [max(2.6, 0.34 * len(records))] * (1 + mixed)
    height = max(2.4, (0.3 if len(shown) <= 16 else 0.2) * len(shown)) + 1.9
    figure, panels = new_figure(
        max(sum(widths) + 3.2, 7), height, columns=len(widths), sharey=True, gridspec_kw={"width_ratios": widths}
    )
    panels = list(np.ravel(panels))
    rows = np.arange(len(shown))
    size = 9 if len(shown) <= 30 else 8
    if outline and shares:
        axes, macs = panels.pop(0), outline.mac_shares()
        axes.barh(rows - 0.2, [shares[name] * 100 for name in shown], 0.4, color=BARS)
        axes.barh(rows + 0.2, [macs[name] * 100 for name in shown], 0.4, color=PALE, ec=BARS, lw=0.5)
        axes.set_xlabel("% of the model's parameters (dark)\nand of its MACs (pale)", fontsize=9)
        axes.set_title("parameters and MACs", fontsize=10)
        axes.margins(y=0)
    written = gone.size <= WRITTEN_CELLS
    _heat(figure, panels[0], gone, (0, 100), "share of the layer's weights that is gone, %", written)
    panels[0].set_title("gone", fontsize=10)
    if mixed:
        _heat(figure, panels[1], bits, (2, max(8, bits.max())), "bits of a stored value", written)
        panels[1].set_title("bits", fontsize=10)
    labels = [_column(row, mixed) for row in chosen]
    is_wide = max(row.trial for row in chosen) >= 1000
    for axes in panels:
        axes.set_xticks(range(len(chosen)), labels, fontsize=8, rotation=90 if is_wide else 0)
        axes.set_xlabel("trial (smallest first)" + ("" if mixed else ", its bits"), fontsize=9)
    first = figure.axes[0]
    first.set_yticks(rows, list(shorts(shown).values()), fontsize=size)
    first.set_ylim(len(shown) - 0.5, -0.5)
    title = "What is gone from each layer, in the front's members"
    if len(shown) < len(names):
        title += f"\n({counted(len(shown), 'layer')} with the most parameters, of {len(names)})"
    most = shown[int(gone.mean(axis=1).argmax())]
    alt = (
        f"{counted(len(shown), 'layer')} and {counted(len(chosen), 'trial')} of the front. Most is gone from "
        f"{short_name(most)} on average."
    )
    return _picture("layers", title, alt, figure)


def influence_picture(found: Sequence[Influence], unit: Metric) -> Picture:
    """Choices, then the layers that mattered most: bars, and what chance would explain."""
    layers = [one for one in found if one.is_layer]
    shown = [*[one for one in found if not one.is_layer], *layers[:SHOWN_LAYERS]]
    names = shorts(one.name for one in layers)
    figure, axes = new_figure(8.5, 0.34 * len(shown) + 1.9)
    rows = np.arange(len(shown))
    colours = [PALE if one.is_noise else BARS for one in shown]
    axes.barh(rows, [one.share * 100 for one in shown], 0.62, color=colours, ec=BARS, lw=0.8)
    axes.plot([one.chance * 100 for one in shown], rows, "|", color=INK, ms=14, mew=2, ls="none")
    axes.set_yticks(rows, [_said_of(one, names) for one in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100 * max([0.2, *(max(one.share, one.chance) for one in shown)]) * 1.05)
    axes.set_xlabel(
        f"variance of the ranks of {literal(unit.name)} explained,\nbeyond what size explains, %", fontsize=9
    )
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(fc=BARS, ec=BARS, label="more than chance"),
        Patch(fc=PALE, ec=BARS, label="no more than chance"),
        Line2D(
            [], [], color=INK, marker="|", ms=12, mew=2, ls="none", label="95 % of shuffled trials stay left of this"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    clear = ", ".join(f"{short_name(one.name)} {percent(one.share, 0)}" for one in shown if not one.is_noise)
    alt = f"Explains more than chance: {clear}." if clear else "Nothing explains more than chance would."
    return _picture("influence", f"Which choices mattered for {unit.name}", alt, figure)


def prediction_picture(quality: PredictionQuality, unit: Metric, pointed: Collection[int]) -> Picture:
    """Accuracy predicted before a trial against what came of it, with the line on which they are equal; `pointed` are
    numbers of the trials that can be pointed at.
    """
    figure, axes = new_figure(6.4, 5.6)
    points = quality.points
    predicted = np.array([one.predicted for one in points]) * 100
    measured = np.array([one.accuracy for one in points]) * 100
    reach = np.array([[one.predicted - one.low, one.high - one.predicted] for one in points]).T * 100
    ends = min(predicted.min(), measured.min()), max(predicted.max(), measured.max())
    slack = max((ends[1] - ends[0]) * 0.08, 0.5)
    low, high = ends[0] - slack, ends[1] + slack
    axes.plot([low, high], [low, high], "--", color=QUIET, label="predicted as measured")
    axes.errorbar(
        predicted, measured, xerr=np.maximum(reach, 0), fmt="o", color=BARS, ecolor=PALE, ms=6, mec="white",
        label="a trial, with one predicted deviation", rasterized=len(points) > MANY,
    )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    value_ticks(axes, unit)
    if not unit.is_share:
        axes.set_xticks(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()])
    axes.set_xlabel(f"predicted {axis_label(unit)}", fontsize=10)
    axes.set_ylabel(f"measured {axis_label(unit, 'validation')}", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    places = [
        (axes, TrialRow(one.trial), one.predicted * 100, one.accuracy * 100) for one in points if one.trial in pointed
    ]
    alt = f"{counted(len(points), 'trial')}, on average {quality.error:.4f} of the search's scale from 0 to 1 off."
    return _picture("prediction", f"How well {unit.name} was predicted before each trial", alt, figure, places)


def _draw_trials(places: Sequence[Place], colours: Mapping[str, str], on_front: Collection[int]) -> None:
    """All trials of a granularity at once, those of the front above the others."""
    alike, many = defaultdict(list), len({row.trial for _, row, *_ in places}) > MANY
    for axes, row, across, up in places:
        alike[axes, row.granularity or "", row.trial in on_front].append((across, up, colours[_bits_label(row)]))
    for (axes, granularity, strong), points in alike.items():
        if strong:
            width = 1.8 if "+" in granularity else 0.9
            style: dict[str, Any] = {"s": 72, "ec": INK, "lw": width, "zorder": 3}
        else:
            style = {"s": 25, "ec": QUIET, "lw": 0.7, "alpha": 0.6, "zorder": 2, "rasterized": many}
        lefts, heights, filled = zip(*points, strict=True)
        axes.scatter(lefts, heights, c=filled, marker=_marker(granularity), **style)


def _places(marks: Iterable[Mark]) -> list[tuple[float, float]]:
    """Where the points of marks lie, in percent."""
    return [(size * 100, accuracy * 100) for mark in marks for size, accuracy in mark.points]


def _name(axes: Any, named: Sequence[Named], taken: Sequence[tuple[float, float]]) -> None:
    """Write each name beside its point, where it covers no point and no other name."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.spell()
    figure.draw_without_rendering()  # until then nobody knows where points lie
    boxes = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in axes.transData.transform(taken)]
    for line in axes.get_lines():
        if line.get_linestyle() != "None" and len(ends := line.get_xdata()) == 2:  # of the limit and the dense model
            boxes.append(Bbox(line.get_transform().transform(np.column_stack([ends, line.get_ydata()]))).padded(2))
    for one in sorted(named, key=lambda one: one.place):
        text = axes.annotate(
            one.text, one.place, (0, 0), textcoords="offset points", fontsize=8.5, zorder=5, va="center"
        )
        for align, offset in NAME_PLACES:
            text.set_ha(align)
            text.xyann = offset
            box = text.get_window_extent()
            if (
                axes.bbox.contains(box.x0, box.y0)
                and axes.bbox.contains(box.x1, box.y1)
                and not box.count_overlaps(boxes)
            ):
                break
        boxes.append(box)


def _marker(granularity: str | None) -> str:
    return MARKERS.get((granularity or "").split("+")[-1], "o")


def _limit_and_dense(state: StudyState, left: Any, right: Any) -> None:
    left.axvline(state.max_size * 100, color=INK, linestyle=":", lw=1.4, label=f"limit, {percent(state.max_size)}")
    dense = state.dense_accuracy
    if dense is None and state.comparison is not None and state.comparison.dense is not None:
        dense = state.comparison.dense.validation_accuracy
    for axes in (left, right) if dense is not None else ():
        axes.axhline(100 * (dense or 0.0), color=QUIET, lw=1.2, label="dense model", zorder=1)
    right.set_xlim(0, 105)


def _finals_by_cost(axes: Any, state: StudyState, comparison: Comparison, by_latency: bool) -> None:
    """Static baselines and finalists over their MACs, or over their latency where that was measured."""
    timed = comparison.latency.networks if comparison.latency else {}
    styles = {"ks": [one.digest for one in comparison.static], "k*": comparison.finalists}
    for style, digests in styles.items():
        for digest in dict.fromkeys(digests):
            if digest in state.scores:
                score = state.scores[digest]
                share = (timed[digest].share if digest in timed else None) if by_latency else score.macs
                if share is not None:
                    axes.plot([share * 100], [score.final_accuracy * 100], style, mfc="none", ms=9, mew=1.6, zorder=4)
    right = max([105.0, *(100 * one.share * 1.03 for one in timed.values() if by_latency)])
    axes.set_xlim(0, right)


def _bits_label(row: TrialRow) -> str:
    return MIXED if isinstance(row.bits, Mapping) else str(row.bits or FLOAT_BITS)


def _bit_colours(rows: Iterable[TrialRow]) -> dict[str, str]:
    """Label of bits -> colour, dark for many; white where layers differ."""
    import matplotlib
    from matplotlib.colors import to_hex

    labels = {_bits_label(row) for row in rows}
    widths = sorted((int(label) for label in labels - {MIXED}), reverse=True)
    scale = matplotlib.colormaps[COLOUR_SCALE]
    places = np.linspace(0.1, 0.95, len(widths)) if len(widths) > 1 else [0.35]
    found = {str(width): to_hex(scale(place)) for width, place in zip(widths, places, strict=False)}
    return found | ({MIXED: "#ffffff" if widths else "#7f9fbf"} if MIXED in labels else {})


def _granularity_handles(rows: Sequence[TrialRow]) -> list[Any]:
    from matplotlib.lines import Line2D

    words = {row.granularity for row in rows if row.granularity}
    ordered = [word for word in (*CHOICES, MIXED) if word in words]
    return [
        Line2D(
            [],
            [],
            marker=_marker(word),
            ls="none",
            mfc="none",
            mec=INK,
            mew=1.8 if "+" in word else 1,
            ms=8,
            label=word,
        )
        for word in ordered
    ]


def _bit_handles(colours: Mapping[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(fc=colour, ec=INK, lw=0.6, label=f"{label} bits") for label, colour in colours.items()]


def _other_handles(left: Any, right: Any) -> list[Any]:
    """Lines and marks of both panels, each once."""
    pairs = [pair for axes in (left, right) for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    return list({label: handle for handle, label in pairs}.values())


def _in_words(row: TrialRow, unit: Metric) -> str:
    return (
        f"{unit.name} {unit.shown(row.accuracy)} at {percent(row.size)} of the size and {percent(row.macs)} of the MACs"
    )


def _said_of(one: Influence, names: Mapping[str, str]) -> str:
    what = f"sparsity of {names[one.name]}" if one.is_layer else literal(one.name)
    return what if one.rises is None else f"{what} (more is {'better' if one.rises else 'worse'})"


def _spread(rows: Sequence[TrialRow], most: int) -> list[TrialRow]:
    """At most so many of them, evenly, with both ends."""
    if not rows:
        return []
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return [rows[place] for place in sorted({*places.tolist()})]


def _largest(names: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """In their order, those with the most parameters."""
    kept = set(sorted(names, key=lambda name: -shares.get(name, 0.0))[:MOST_LAYERS])
    return [name for name in names if name in kept]


def _bits(record: TrialRecord, layer: str) -> int:
    bits = record.policy.bits
    return bits.get(layer, FLOAT_BITS) if isinstance(bits, Mapping) else bits


def _column(row: TrialRow, mixed: bool) -> str:
    return str(row.trial) if mixed else f"{row.trial}\n{_bits_label(row)} b"


def _heat(figure: Any, axes: Any, values: np.ndarray, ends: tuple[float, float], label: str, written: bool) -> None:
    image = axes.imshow(values, aspect="auto", cmap=COLOUR_SCALE, vmin=ends[0], vmax=ends[1], interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, shrink=0.9, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    for down in np.arange(0.5, values.shape[0] - 1):
        axes.axhline(down, color="white", linewidth=0.6)
    for across in np.arange(0.5, values.shape[1] - 1):
        axes.axvline(across, color="white", linewidth=0.6)
    for (down, across), value in np.ndenumerate(values) if written else ():
        light = (value - ends[0]) / (ends[1] - ends[0]) > 0.55
        axes.text(across, down, f"{value:.0f}", ha="center", va="center", fontsize=7, color=INK if light else "white")


def _entitle(figure: Any, title: str) -> None:
    figure.suptitle(literal(title), fontsize=12.5, fontweight="bold")


def _picture(name: str, title: str, alt: str, figure: Any, places: Sequence[Place] = ()) -> Picture:
    """Draw it; `places` can be pointed at."""
    import matplotlib

    _entitle(figure, title)
    png = png_bytes(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, dpi=SHARP)
    spots: list[Spot] = []
    for axes, row, across, up in places:
        x, y = figure.transFigure.inverted().transform(axes.transData.transform((across, up)))
        left, bottom, right, top = axes.get_position().extents
        if left - 0.01 <= x <= right + 0.01 and bottom - 0.01 <= y <= top + 0.01 and math.isfinite(x + y):
            spots.append(Spot(row.trial, float(x), 1 - float(y)))
    width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
    return Picture(name, title, alt, png, text.getvalue(), width, height, tuple(spots))
