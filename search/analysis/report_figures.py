"""The pictures of the pruning labs: histograms, shares by granularity, layouts, sensitivity, the three curves.

With many layers, each kind takes as many pages as it needs. Everything drawn here is passed in as data; nothing is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pruning.analysis.granularity_damage import LayerShare, MeanShare
from pruning.analysis.histograms import Histogram
from search.analysis.pruning_curves import METHODS, Curves
from search.metric import SHARE, Metric, told_share
from search.results.figures import (
    COLOURS,
    MARKERS,
    accuracy_limits,
    axis_label,
    literal,
    new_figure,
    png_bytes,
    short,
    shorts,
    value_ticks,
)
from spaces.sensitivity import Profile
from spaces.wording import counted, percent

HISTOGRAM_COLUMNS, HISTOGRAM_ROWS, STAGE_ROWS = 4, 6, 7
SENSITIVITY_COLUMNS, SENSITIVITY_ROWS = 4, 3
SHARED_LAYERS = 30
"""Layers side by side on one page of shares."""
SLANTED_NAMES = 12
"""Up to this many layer names along an axis are slanted; more are upright."""
PLAIN_CURVES = 3
"""Up to this many granularities, the curves without recalibration are drawn too."""
STAGE_COLOURS = ("#0a4d8c", "#d55e00", "#56b4e9")
METHOD_STYLES = dict(zip(METHODS, (("#d55e00", "o--"), ("#0a4d8c", "s-"), ("#56b4e9", "^-")), strict=True))
VALUES = "cividis"
"""Of weights: from dark to light in the same order for every eye, and without colours."""
KEPT, REMOVED, EDGES = "#1f4e79", "#f0f3f6", "#b0b8c0"
LAYOUT_WIDTH, LAYOUT_HEIGHT, LAYOUT_ASPECT = 11.0, 9.0, 1.5
"""The largest width and height in inches, and the ratio of width to height that the panels aim for."""
TITLE_WIDTH = 1.8
"""Inches that the title of a mask takes."""


def histogram_pages(
    layers: Mapping[str, Sequence[Histogram]], stages: Sequence[str], bits: Mapping[str, int] = MappingProxyType({})
) -> list[bytes]:
    """The weights of each layer: many layers side by side, or, with several stages, one row for each layer.

    Args:
        layers: layer -> one histogram for each stage.
        stages: what the histograms show; several get a column each.
        bits: layer -> bits of its weights in all stages but the first, as far as they are told.
    """
    from matplotlib.ticker import EngFormatter

    several, names = len(stages) > 1, shorts(layers)
    columns, rows = (len(stages), STAGE_ROWS) if several else (HISTOGRAM_COLUMNS, HISTOGRAM_ROWS)
    cells = [(layer, n, h) for layer, found in layers.items() for n, h in enumerate(found)]
    pages = []
    for page, number, count in _paged(cells, columns * rows):
        columns = min(columns, len(page))
        height = -(-len(page) // columns)
        figure, panels = new_figure(3.6 * columns, 2.1 * height + 0.8, columns, height, squeeze=False)
        for axes, (layer, stage, histogram) in zip(panels.flat, page, strict=False):
            _stairs(axes, histogram, STAGE_COLOURS[stage % 3])
            width = f", {bits[layer]} bits" if stage and layer in bits else ""
            axes.set_title(
                f"{names[layer]}{width}\n{_counted(histogram, stages[stage] if several else '')}", fontsize=9.5
            )
            axes.tick_params(labelsize=9)
            axes.locator_params(axis="x", nbins=5)
            axes.locator_params(axis="y", nbins=3, integer=True)
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.ticklabel_format(axis="x", scilimits=(-4, 5))
        _hide(panels.flat[len(page) :])
        figure.suptitle("How the weights of each layer are spread", fontsize=14)
        ends = ", an outermost bar: all as far as is written above it" if any(_beyond(h) for *_, h in page) else ""
        figure.supxlabel(f"value of a weight{ends}", fontsize=11)
        figure.supylabel("number of weights, zeros left out", fontsize=11)
        _number(figure, number, count)
        pages.append(png_bytes(figure))
    return pages


def _stairs(axes: Any, histogram: Histogram, colour: str) -> None:
    """Bars of even width; an outermost one whose bin is wider says how far its weights go."""
    edges, width = np.array(histogram.edges), _even_width(histogram)
    edges[0], edges[-1] = max(edges[0], edges[1] - width), min(edges[-1], edges[-2] + width)
    axes.stairs(histogram.counts, edges, fill=True, color=colour)
    for end, x, side in (0, 0.01, "left"), (-1, 0.99, "right"):
        if end in _beyond(histogram):
            text = f"to {histogram.edges[end]:.3g}".replace("-", "\N{MINUS SIGN}")
            axes.text(x, 0.12, text, transform=axes.transAxes, ha=side, fontsize=9, color="0.4")


def _even_width(histogram: Histogram) -> float:
    """Of all bins but the outermost."""
    first, second = histogram.edges[1:3] if len(histogram.edges) > 3 else histogram.edges[:2]
    return second - first


def _beyond(histogram: Histogram) -> list[int]:
    """Which of the outermost edges, 0 and -1, lie far out."""
    widths, even = np.diff(histogram.edges), _even_width(histogram)
    return [end for end in (0, -1) if widths[end] > 1.5 * even]


def _counted(histogram: Histogram, stage: str) -> str:
    parts = [
        f"{stage}: " if stage else "",
        f"{counted(histogram.numel, 'weight')}, {percent(histogram.zeros / histogram.numel)} zero",
    ]
    return "".join(parts) + (f", {percent(histogram.gone / histogram.numel)} gone" if histogram.gone else "")


def share_pages(rows: Sequence[LayerShare], means: Sequence[MeanShare], sparsity: float) -> list[bytes]:
    """Kept importance and output error at one sparsity: means by granularity on the left, layers on the right.

    Layers for which a granularity reaches another sparsity than the one asked for are left out.
    """
    rows = [row for row in rows if row.sparsity == sparsity and row.as_asked]
    means = [mean for mean in means if mean.sparsity == sparsity]
    words = list(dict.fromkeys(row.granularity for row in rows))
    pages = []
    for layers, number, count in _paged(list(dict.fromkeys(row.layer for row in rows)), SHARED_LAYERS):
        figure, panels = new_figure(
            4.6 + max(3.5, 0.3 * len(layers)), 7.8, 2, 2,
            width_ratios=[3.2, max(3.5, 0.3 * len(layers))], sharey="row",
        )  # fmt: skip
        for (left, right), (key, label) in zip(
            panels,
            [
                ("kept_importance", "kept importance: sum |w| kept / all"),
                ("output_error", "output error ‖y − y′‖ / ‖y‖"),
            ],
            strict=True,
        ):
            _mean_bars(left, means, key)
            left.set_ylabel(label, fontsize=10)
            for place, word in enumerate(words):
                found = {row.layer: getattr(row, key) for row in rows if row.granularity == word}
                values = [np.nan if found.get(layer) is None else found[layer] for layer in layers]
                offsets = np.arange(len(layers)) + (place - (len(words) - 1) / 2) * 0.07
                right.plot(offsets, values, MARKERS[word], color=COLOURS[word], markersize=6, label=word)
            right.set_xticks(range(len(layers)))
            right.set_xlim(-0.6, len(layers) - 0.4)
            right.grid(axis="both", color="0.92", linewidth=0.6)
            right.set_axisbelow(True)
            for axes in (left, right):
                axes.tick_params(labelsize=9.5)
                axes.set_ylim(bottom=0)
        for axes in panels[0]:
            axes.tick_params(axis="x", labelbottom=False)
        slant = 50 if len(layers) <= SLANTED_NAMES else 90
        panels[1, 1].set_xticklabels(
            shorts(layers).values(), rotation=slant, ha="right", rotation_mode="anchor", fontsize=9.5
        )
        compared = len(means[0].layers) if means else 0
        panels[0, 0].set_title(f"mean over the {compared} layers that all of these prune", fontsize=10)
        panels[0, 1].set_title(f"each layer alone at sparsity {sparsity:g}, nothing trained", fontsize=10)
        figure.suptitle(f"What each granularity leaves of a layer at sparsity {sparsity:g}", fontsize=13)
        figure.legend(
            *panels[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=9, frameon=False,
            fontsize=10.5, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip
        _number(figure, number, count)
        pages.append(png_bytes(figure))
    return pages


def _mean_bars(axes: Any, means: Sequence[MeanShare], key: str) -> None:
    found = [(mean.granularity, value) for mean in means if (value := getattr(mean, key)) is not None]
    if not found:
        axes.text(0.5, 0.5, "no layer in common", transform=axes.transAxes, ha="center", color="0.4", fontsize=8)
        return
    for place, (word, value) in enumerate(found):
        axes.bar(place, value, color=COLOURS[word], width=0.75)
        axes.text(place, value, f"{value:.2f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(found)))
    axes.set_xticklabels([word for word, _ in found], rotation=50, ha="right", rotation_mode="anchor")


def layout_png(
    layer: str, weight: np.ndarray, masks: Mapping[str, tuple[np.ndarray, float]], cell: tuple[int, int], note: str
) -> bytes:
    """A weight as a matrix, with its mask in each granularity beside it.

    Args:
        weight: (rows, columns), from `pruning.analysis.weight_layout.laid_out`.
        masks: granularity -> mask of that shape, and the sparsity reached in the layer as a whole.
        cell: rows and columns of one kernel, marked by lines.
        note: which part of the layer is shown.
    """
    count, tall = len(masks) + 1, weight.shape[0] / weight.shape[1]
    columns = min(range(1, count + 1), key=lambda columns: _badness(columns, count, tall))
    rows = -(-count // columns)
    width = min(LAYOUT_WIDTH / columns, LAYOUT_HEIGHT / (rows * tall))
    figure, panels = new_figure(
        max(width, TITLE_WIDTH) * columns + 0.8,
        (max(width * tall, 0.4) + 0.4) * rows + 0.6,
        columns,
        rows,
        squeeze=False,
    )
    flat = list(panels.flat)
    limit = float(np.quantile(np.abs(weight), 0.99)) or 1.0
    shown = flat[0].imshow(weight, cmap=VALUES, vmin=-limit, vmax=limit, interpolation="nearest")
    flat[0].set_title("weights: dark is below 0, light above", fontsize=9)
    bar = figure.colorbar(shown, ax=flat[0], shrink=0.8, pad=0.01)
    bar.set_label("value of a weight", fontsize=9)
    bar.ax.tick_params(labelsize=8.5)
    for axes, (word, (mask, achieved)) in zip(flat[1:], masks.items(), strict=False):
        _two_tones(axes, mask)
        axes.set_title(f"{word}: {percent(achieved)} removed", fontsize=10)
    for axes in flat[:count]:
        _kernel_lines(axes, weight.shape, cell)
    _hide(flat[count:])
    figure.suptitle(f"What each granularity keeps of {short(layer)} (dark)\n{note}", fontsize=12)
    figure.supxlabel("input channel x kernel width", fontsize=10)
    figure.supylabel("output channel x kernel height", fontsize=10)
    return png_bytes(figure)


def _badness(columns: int, count: int, tall: float) -> float:
    """How far a page with that many panels a row, each of this height over width, is from filling a screen."""
    rows = -(-count // columns)
    return abs(math.log(columns / (rows * tall) / LAYOUT_ASPECT)) + (rows * columns - count) / count


def _two_tones(axes: Any, mask: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(mask, cmap=ListedColormap([REMOVED, KEPT]), vmin=0, vmax=1, interpolation="nearest")


def _kernel_lines(axes: Any, shape: tuple[int, ...], cell: tuple[int, int]) -> None:
    rows, columns = cell
    for at in np.arange(rows, shape[0], rows) if rows > 1 else ():
        axes.axhline(at - 0.5, color=EDGES, linewidth=0.5)
    for at in np.arange(columns, shape[1], columns) if columns > 1 else ():
        axes.axvline(at - 0.5, color=EDGES, linewidth=0.5)
    axes.tick_params(labelsize=8.5)
    axes.spines[:].set_visible(False)


def sensitivity_pages(profile: Profile, parameters: Mapping[str, int], unit: Metric = SHARE) -> list[bytes]:
    """One panel for each layer: accuracy above, loss below, against the layer's sparsity, one colour for each
    granularity.

    Args:
        parameters: layer -> its number of weights.
        unit: of the axis of accuracies, see `search.results.figures.value_ticks`.
    """
    layers = [name for name in parameters if any(name in by_layer for by_layer in profile.points.values())]
    plain = len(profile.points) <= PLAIN_CURVES and profile.is_recalibrated and not profile.brief
    dense = (profile.dense_loss, profile.dense_accuracy) if plain else profile.reference
    names = shorts(layers)
    limits = _limits(profile, dense[1], plain, unit)
    pages = []
    for page, number, count in _paged(layers, SENSITIVITY_COLUMNS * SENSITIVITY_ROWS):
        columns = min(SENSITIVITY_COLUMNS, len(page))
        height = -(-len(page) // columns)
        figure, panels = new_figure(
            3.6 * columns, 3.7 * height + 1, columns, 2 * height, squeeze=False, sharex=True,
            height_ratios=[3, 2] * height,
        )  # fmt: skip
        for place, layer in enumerate(page):
            row, column = divmod(place, columns)
            upper, lower = panels[2 * row : 2 * row + 2, column]
            _sensitivity(upper, lower, profile, layer, dense, plain)
            upper.set_ylim(limits)
            upper.set_title(f"{names[layer]}: {counted(parameters[layer], 'parameter')}", fontsize=9.5)
            value_ticks(upper, unit, count=4)
            if column == 0:
                upper.set_ylabel(axis_label(unit), fontsize=10)
                lower.set_ylabel("loss", fontsize=10)
            lower.tick_params(axis="x", labelbottom=True)
        for place in range(len(page), columns * height):
            row, column = divmod(place, columns)
            _hide(panels[2 * row : 2 * row + 2, column])
        figure.supxlabel("sparsity of this layer alone, nothing trained", fontsize=11)
        figure.legend(
            handles=_sensitivity_legend(profile, dense[1], plain, unit), loc="outside upper center",
            ncols=2 * columns - 1, frameon=False, fontsize=10,
            title=f"Sensitivity of each layer: {literal(unit.name)} above, loss below", title_fontsize=13,
        )  # fmt: skip
        _number(figure, number, count)
        pages.append(png_bytes(figure))
    return pages


def _limits(profile: Profile, dense: float, plain: bool, unit: Metric) -> tuple[float, float]:
    """Of the axes of accuracies, which are alike, so that layers can be compared; in percent."""
    points = [p for by_layer in profile.points.values() for own in by_layer.values() for p in own]
    found = [dense, profile.reference[1], *(p.recalibrated_accuracy for p in points)]
    found += [p.accuracy for p in points] if plain else []
    low, high = 100 * float(np.nanmin(found)), 100 * float(np.nanmax(found))
    beside = 0.05 * (high - low)
    return accuracy_limits(low - beside, high + max(beside, 0.5), unit)


def _sensitivity(upper: Any, lower: Any, profile: Profile, layer: str, dense: tuple[float, float], plain: bool) -> None:
    """A layer's accuracy and loss; `dense` has the loss and the accuracy that lines show."""
    losses = [dense[0]]
    for word, by_layer in profile.points.items():
        if layer not in by_layer:
            continue
        points = by_layer[layer]
        levels = [0.0, *(p.sparsity for p in points)]
        for style, width, prefix in [("--", 0.8, ""), ("-", 1.4, "recalibrated_")][0 if plain else 1 :]:
            start = profile.reference if prefix else dense
            accuracy = np.array([start[1], *(getattr(p, f"{prefix}accuracy") for p in points)])
            loss = [start[0], *(getattr(p, f"{prefix}loss") for p in points)]
            options = {"color": COLOURS[word], "linestyle": style, "linewidth": width}
            options |= {"marker": MARKERS[word], "markersize": 3}
            upper.plot(levels, accuracy * 100, **options)
            lower.plot(levels, loss, **options)
            losses += loss
    upper.axhline(dense[1] * 100, color="0.55", linewidth=0.8, linestyle=":")
    lower.axhline(dense[0], color="0.55", linewidth=0.8, linestyle=":")
    _loss_scale(lower, np.array(losses)[np.isfinite(losses)])
    for axes in (upper, lower):
        axes.tick_params(labelsize=9)
        axes.set_xlim(-0.02, 1.02)


def _loss_scale(axes: Any, losses: np.ndarray) -> None:
    """Logarithmic if the losses lie far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if len(losses) and losses.min() > 0 and losses.max() > 3 * losses.min():
        axes.set_yscale("log")
        wide = losses.max() > 100 * losses.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _sensitivity_legend(profile: Profile, dense: float, plain: bool, unit: Metric) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[word], marker=MARKERS[word], markersize=4, label=word) for word in profile.points
    ]
    if plain:
        handles.append(Line2D([], [], color="0.3", linestyle="--", linewidth=0.8, label="BatchNorm not recalibrated"))
    label = f"dense, {literal(told_share(unit, dense))}"
    return [*handles, Line2D([], [], color="0.55", linestyle=":", label=label)]


def curves_png(curves: Curves, unit: Metric = SHARE) -> bytes:
    """Accuracy against sparsity: prune only, prune and fine-tune, iterative; the dense level as a line.

    Args:
        unit: of the axis of accuracies, see `search.results.figures.value_ticks`.
    """
    figure, axes = new_figure(7, 4.8)
    for method, (colour, style) in METHOD_STYLES.items():
        points = [(p.sparsity, p.accuracy) for p in curves.points if p.method == method and p.accuracy is not None]
        if points:
            levels, accuracies = np.array(points).T * 100
            axes.plot(levels, accuracies, style, color=colour, markersize=5, label=method)
    axes.axhline(curves.dense_accuracy * 100, color="0.5", linestyle=":", label="dense")
    axes.set_xlabel("sparsity: weights asked to go, of the layers that are pruned, %")
    axes.set_ylabel(axis_label(unit, "validation"))
    epochs = f"{curves.epochs:g} epoch{'' if curves.epochs == 1 else 's'}"
    length = epochs if curves.steps is None else f"{counted(curves.steps, 'step')} ({epochs})"
    figure.suptitle("What pruning costs, and what fine-tuning gives back", fontsize=11)
    axes.set_title(f"every fine-tune: {length}, seed {curves.seed}", fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(accuracy_limits(low, high, unit))
    value_ticks(axes, unit)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return png_bytes(figure)


def _paged(items: Sequence[Any], most: int) -> Iterator[tuple[Sequence[Any], int, int]]:
    """(items of a page, its number from 1, number of pages)."""
    count = -(-len(items) // most)
    for number in range(count):
        yield items[number * most : (number + 1) * most], number + 1, count


def _number(figure: Any, number: int, count: int) -> None:
    if count > 1:
        figure.text(0.995, 0.005, f"page {number} of {count}", fontsize=9, ha="right", color="0.4")


def _hide(panels: Any) -> None:
    for axes in panels:
        axes.set_visible(False)
