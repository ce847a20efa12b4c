"""Pictures of a study: the front, and sensitivity curves of all layers together; PNG bytes, without a display."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from search.metric import SHARE, Metric
from search.records import COMPLETE
from search.results.comparison import BITS_OF, Comparison
from search.results.glyphs import drawable
from search.results.tables import FinalScore, TrialRow
from spaces.granularity import parts_of
from spaces.printable import printable
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint
from spaces.wording import counted

if TYPE_CHECKING:
    from search.results.picture import Picture

COLOURS = {
    "fine-grained": "#0a4d8c", "vector": "#009e73", "kernel": "#e6ab02", "channel": "#d55e00", "mixed": "#000000",
    "1:4": "#cc79a7", "2:4": "#882255", "*:4": "#56b4e9", "*:8": "#6b6b3a",
}  # fmt: skip
"""Granularity -> colour: apart to colour-blind eyes, and with `MARKERS` in print without colours."""
MARKERS = {
    "fine-grained": "o", "channel": "D", "vector": "v", "kernel": "^", "1:4": "<", "2:4": ">", "*:4": "p", "*:8": "h",
    "mixed": "X",
}  # fmt: skip
"""Granularity -> marker; those of two stages have their mask's, with a dark edge."""
KINDS = ("png", "svg", "pdf")
"""Of files that pictures are written as."""
SHOWN_POINTS = 15
"""How many points of accuracy below the most accurate trial the front's picture shows."""
NEAR = (60, 16)
"""Pixels across and down within which the texts of two points would cover each other."""
NAME_LENGTH = 34
"""The most characters of a layer's name that stay readable over a panel."""
NAMED_LINES = 10
"""Up to this many lines of a panel have a colour and a name each; there are no more colours that differ."""
MOST_SENSITIVE = 8
"""How many lines of a panel with more than that have a colour and a name."""
SHORT_ENOUGH = 28
"""The most characters of names that stand in two columns below a panel."""
LIGHT_GREY = "0.85"
LINE_COLOURS = (
    "#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#999933", "#000000", "#44aa99", "#aa4499", "#b8860b",
)  # fmt: skip
"""Of named lines: apart to colour-blind eyes, and with `LINE_MARKS` in print without colours."""
LINE_MARKS = "os^DvPX<>*"
LEAST_SPAN = 5.0
"""Points of accuracy that a panel of a profile spans at least."""
MOST_COLUMNS = 2
"""Panels of a profile beside each other; more stand below."""


def front_png(
    trials: Sequence[TrialRow],
    front: Sequence[TrialRow],
    max_size: float,
    comparison: Comparison | None = None,
    finals: Mapping[str, FinalScore] = MappingProxyType({}),
    metric: str = "encoded",
    unit: Metric = SHARE,
) -> bytes:
    """The picture of `front_figure`."""
    return png_bytes(front_figure(trials, front, max_size, comparison, finals, metric, unit))


def front_figure(
    trials: Sequence[TrialRow],
    front: Sequence[TrialRow],
    max_size: float,
    comparison: Comparison | None = None,
    finals: Mapping[str, FinalScore] = MappingProxyType({}),
    metric: str = "encoded",
    unit: Metric = SHARE,
) -> Picture:
    """Accuracy against size on a log axis: every complete trial faint, the front strong, the limit as a line; with a
    comparison also the dense model as it is and rounded, and the means of the finals of finalists and static baselines.

    Args:
        finals: scores by policy digest.
        metric: of the sizes, `encoded` or `nonzero`. Rounding changes only the first.
        unit: of the axis of accuracies, see `value_ticks`.
    """
    figure, axes = new_figure(8, 5.6)
    complete = [row for row in trials if row.state == COMPLETE]
    for granularity in sorted({row.granularity for row in complete if row.granularity is not None}):
        *removal, mask = parts_of(granularity)
        style = {"color": COLOURS.get(mask, "grey"), "marker": MARKERS.get(mask, "o")}
        points = _points(row for row in complete if row.granularity == granularity)
        axes.scatter(*points, s=16, alpha=0.25, linewidths=0, **style)
        on_front = sorted((row for row in front if row.granularity == granularity), key=lambda row: row.point.size)
        axes.scatter(
            *_points(on_front), s=90 if mask == "mixed" else 46, edgecolors="black" if removal else "white", **style,
            label=f"{granularity} ({len(on_front)} on the front)", zorder=3,
        )  # fmt: skip
    sizes, accuracies = _points(sorted(front, key=lambda row: row.point.size))
    highest = accuracies >= np.maximum.accumulate(accuracies)
    label = "most accurate within a size" if len(front) else None
    axes.step(sizes[highest], accuracies[highest], where="post", color="0.4", linewidth=1, zorder=2, label=label)
    axes.axvline(max_size * 100, color="0.3", linestyle=":", label=f"limit, {max_size * 100:.4g} %")
    marks = compared_marks(comparison, finals, metric) if comparison is not None else []
    dense = [comparison.dense.validation_accuracy] if comparison is not None and comparison.dense is not None else []
    for accuracy in dense:
        axes.axhline(accuracy * 100, color="0.7", linewidth=1, label="dense")
    for mark in marks:
        size = 11 if "*" in mark.style else 7  # a star stands around the trial that it is the finals of
        points = np.array(list(mark.points)).T * 100
        axes.plot(*points, mark.style, markerfacecolor="none", markersize=size, label=mark.label, zorder=4)
    size_scale(axes)
    axes.set_title(_front_title(len(complete), len(front), int((~highest).sum()), unit), fontsize=11)
    axes.set_xlabel(f"{metric} size, % of the dense model's (log scale)")
    axes.set_ylabel(axis_label(unit, "validation"))
    shown = _points(front)[1]
    if not unit.is_share:  # what finals are compared with may lie below all of the front
        beside = [accuracy for mark in marks for _, accuracy in mark.points]
        shown = np.array([*shown, *(100 * share for share in [*dense, *beside])])
    _write_beside(axes, zoom(axes, _points(complete)[1], shown, marks))
    value_ticks(axes, unit)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _front_title(trials: int, front: int, for_speed: int, unit: Metric) -> str:
    """What is to be seen, in a line."""
    name = literal(f"{unit.name[:1].upper()}{unit.name[1:]}" if unit.is_share else unit.name)
    speed = f", {for_speed} of these for speed" if for_speed else ""
    networks = counted(trials, "network")
    return f"{name} against stored size: {networks}, {front or 'none'} of them on the front{speed}"


def fronts_figure(fronts: Mapping[str, Sequence[TrialRow]], unit: Metric = SHARE) -> Picture:
    """The fronts of studies in one picture, a colour each: accuracy against size on a log axis.

    Args:
        fronts: name of a study -> its front.
        unit: as of `front_png`.
    """
    figure, axes = new_figure(8, 5)
    for colour, (name, front) in zip((COLOURS["fine-grained"], COLOURS["channel"]), fronts.items(), strict=False):
        sizes, accuracies = _points(sorted(front, key=lambda row: row.point.size))
        highest = accuracies >= np.maximum.accumulate(accuracies)
        axes.step(sizes[highest], accuracies[highest], where="post", color=colour, linewidth=1)
        axes.scatter(sizes, accuracies, s=42, color=colour, edgecolors="white", label=short(name), zorder=3)
    shown = _points(row for front in fronts.values() for row in front)[1]
    size_scale(axes)
    axes.set_xlabel("size, share of the dense model")
    axes.set_ylabel(axis_label(unit, "validation"))
    zoom(axes, shown, shown, [])
    value_ticks(axes, unit)
    axes.legend(frameon=False, loc="best", fontsize=8)
    return figure


def value_ticks(axes: Any, unit: Metric, count: int = 6) -> None:
    """Give the upright axis of a panel that is drawn, on which shares stand in percent, about so many values of the
    metric; of a metric that is a share, percent stay. Better is up, whatever its direction.
    """
    if unit.is_share:
        return
    low, high = axes.get_ylim()
    ticks = unit.ticks(low / 100, high / 100, count)
    axes.set_yticks([share * 100 for share in ticks], list(ticks.values()))


class Mark(NamedTuple):
    """Networks other than trials in the front's picture.

    Attributes:
        label: what all of them are.
        style: as matplotlib's format strings.
        points: (size, validation accuracy), shares -> what stands beside the point.
        offset: of these texts from their points, to the right and up, in points of type.
    """

    label: str
    style: str
    points: Mapping[tuple[float, float], str]
    offset: tuple[int, int] = (6, 4)


def compared_marks(comparison: Comparison, finals: Mapping[str, FinalScore], metric: str) -> list[Mark]:
    def point(digest: str) -> tuple[float, float]:
        return finals[digest].size(metric), finals[digest].final_accuracy

    rounded = comparison.rounded if metric == "encoded" else {}
    references = _by_point(
        ((one.size_encoded, one.validation_accuracy), f"{BITS_OF[name]} bits") for name, one in rounded.items()
    )
    static = _by_point((point(one.digest), one.rule) for one in comparison.static if one.digest in finals)
    finalists = {point(digest): "" for digest in comparison.finalists if digest in finals}
    found = [
        Mark("dense, rounded only", "kx", references, (3, -13)),  # below: above are baselines of about that size
        Mark("static baselines, mean of finals", "ks", static),
        Mark("finalists, mean of finals", "k*", finalists),
    ]
    return [mark for mark in found if mark.points]


def _by_point(named: Iterable[tuple[tuple[float, float], str]]) -> dict[tuple[float, float], str]:
    """Equal points share one text."""
    texts: dict[tuple[float, float], str] = {}
    for point, name in named:
        texts[point] = f"{texts[point]}, {name}" if point in texts else name
    return texts


def _points(rows: Iterable[TrialRow]) -> np.ndarray:
    """Sizes and accuracies (2, n) in percent."""
    return np.array([(row.size, row.accuracy) for row in rows], dtype=float).reshape(-1, 2).T * 100


def profile_png(profile: Profile, unit: Metric = SHARE, shares: Mapping[str, float] = MappingProxyType({})) -> bytes:
    """The picture of `profile_figure`."""
    figure = profile_figure(profile, unit, shares)
    figure.suptitle(f"Sensitivity: {literal(unit.name)} where one layer alone is pruned or rounded", fontsize=11)
    return png_bytes(figure)


def profile_figure(profile: Profile, unit: Metric = SHARE, shares: Mapping[str, float] = MappingProxyType({})) -> Any:
    """Accuracy against sparsity, one line a layer, one panel a granularity; against bits in a last one, if any were
    scanned; dashed without recalibration. A panel of more than `NAMED_LINES` layers names those whose worst accuracy is
    lowest in it, if it is below the dense model's, and draws the others in grey.

    Args:
        unit: of the axis of accuracies, see `value_ticks`.
        shares: layer -> its share of the network's parameters, which stands behind its name.
    """
    count = len(profile.points) + bool(profile.rounding)
    columns, rows = min(count, MOST_COLUMNS), -(-count // MOST_COLUMNS)
    panels = np.ravel(new_figure(5.2 * columns, 5.2 * rows, columns=columns, rows=rows)[1])
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes, (granularity, layers) in zip(panels, profile.points.items(), strict=False):
        shown: dict[tuple[Any, ...], str] = {}
        for layer, points in layers.items():
            shown.setdefault(points, layer)  # layers of a group share their points
        curves = {layer: ([0.0, *(p.sparsity for p in points)], points) for points, layer in shown.items()}
        axes.set_xlabel("sparsity of this layer alone")
        _profile_curves(axes, profile, granularity, curves, unit, shares)
    if profile.rounding:
        widths = sorted({p.bits for points in profile.rounding.values() for p in points}, reverse=True)
        places = {bits: 1 + place for place, bits in enumerate(widths)}
        axes = panels[count - 1]
        axes.set_xlabel("bits of this layer's values alone")
        _profile_curves(axes, profile, "rounding", {
            layer: ([0, *(places[p.bits] for p in points)], points) for layer, points in profile.rounding.items()
        }, unit, shares)  # fmt: skip
        axes.set_xticks(range(len(widths) + 1), ["float", *map(str, widths)])
    return panels[0].figure


Curves = Mapping[str, tuple[list[float], tuple[ProfilePoint, ...] | tuple[RoundingPoint, ...]]]
"""Layer -> where the dense model and its points lie, and the points."""


def _profile_curves(
    axes: Any,
    profile: Profile,
    title: str,
    curves: Curves,
    unit: Metric,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """One panel, its legend below it."""
    is_twofold = profile.is_recalibrated and not profile.brief
    colours = _colours(curves, profile.reference[1])
    marks = dict(zip(colours, LINE_MARKS, strict=False))
    lines: dict[str, Any] = {}
    names = shorts(curves)
    for layer, (places, points) in curves.items():
        style = {"color": colours.get(layer, LIGHT_GREY), "zorder": 2 if layer in colours else 1.5}
        named = names[layer] + (f" ({shares[layer] * 100:.2g} %)" if layer in shares else "")
        recalibrated = np.array([profile.reference[1], *(p.recalibrated_accuracy for p in points)]) * 100
        (lines[layer],) = axes.plot(places, recalibrated, marker=marks.get(layer, "."), ms=4, label=named, **style)
        if is_twofold:
            plain = [profile.dense_accuracy, *(p.accuracy for p in points)]
            axes.plot(places, np.array(plain) * 100, linestyle="--", linewidth=0.7, **style)
    axes.set_title(f"{title}{' (dashed: BatchNorm not recalibrated)' if is_twofold else ''}", fontsize=9)
    axes.set_ylabel(axis_label(unit, "calibration"))
    low, high = axes.get_ylim()
    axes.set_ylim(accuracy_limits(low, high, unit))
    value_ticks(axes, unit)
    said = "" if len(curves) <= NAMED_LINES else _named(len(colours), len(curves))
    if shares and colours:
        said = f"{said or 'layer'} (share of the parameters)"
    handles = [lines[layer] for layer in colours]
    is_wide = any(len(line.get_label()) > SHORT_ENOUGH for line in handles)
    axes.legend(
        handles=handles, title=said or None, frameon=False, fontsize=8, title_fontsize=8,
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1 if is_wide else 2,
    )  # fmt: skip


def accuracy_limits(low: float, high: float, unit: Metric) -> tuple[float, float]:
    """An axis from about `low` to `high`, in percent, on which what differs by an example or two is no cliff."""
    low = min(low, high - LEAST_SPAN)
    return low, _no_tick_beyond(low, high) if unit.is_share else high


def _named(count: int, layers: int) -> str:
    if count == MOST_SENSITIVE:
        return f"the {count} most sensitive of {layers}, worst first"
    return f"{count or 'none'} of {layers} below the dense model{', worst first' * (count > 1)}"


def _colours(curves: Curves, dense: float) -> dict[str, str]:
    """Of the layers that are named in a panel, in the order in which they are: of many, such as fall below `dense`."""
    if len(curves) <= NAMED_LINES:
        return dict(zip(curves, LINE_COLOURS, strict=False))
    worst = {
        layer: min((float(np.nan_to_num(p.recalibrated_accuracy)) for p in points), default=1.0)
        for layer, (_, points) in curves.items()
    }
    fallen = sorted((layer for layer in worst if worst[layer] < dense), key=lambda layer: worst[layer])
    return dict(zip(fallen[:MOST_SENSITIVE], LINE_COLOURS, strict=False))


class Named(NamedTuple):
    """A text for a point of a mark, both in percent."""

    mark: Mark
    place: tuple[float, float]
    text: str


def zoom(axes: Any, trials: np.ndarray, front: np.ndarray, marks: Sequence[Mark]) -> list[Named]:
    """Leave out what lies far below the front's most accurate trial, and say what that is; returns the names of the
    points of `marks` that stay.
    """
    low = -np.inf
    near = front[front > front.max(initial=0.0) - SHOWN_POINTS]
    if len(near):
        low = near.min() - 2
        high = max(front.max(), axes.dataLim.y1)
        axes.set_ylim(low, _no_tick_beyond(low, high + 0.06 * (high - low)))
    count = int((trials < low).sum())
    below = [counted(count, "trial")] if count else []
    named = []
    for mark in marks:
        for (size, accuracy), text in mark.points.items():
            if accuracy * 100 >= low:
                named += [Named(mark, (size * 100, accuracy * 100), text)] if text else []
            else:
                below.append(f"{mark.label.partition(',')[0]} {text}".strip())
    if below:
        axes.annotate(f"below: {', '.join(below)}", (0.01, 0.01), xycoords="axes fraction", fontsize=8, color="0.4")
    return named


def _no_tick_beyond(low: float, high: float) -> float:
    """`high`, but hardly above 100 %: the end of an axis from `low`."""
    return min(high, 100 + 0.02 * (100 - low))


def _write_beside(axes: Any, named: Sequence[Named]) -> None:
    from matplotlib.patheffects import withStroke

    for mark in {id(one.mark): one.mark for one in named}.values():
        own = [(one.place, one.text) for one in named if one.mark is mark]
        for place, text in _side_by_side(axes, own):
            said = axes.annotate(text, place, mark.offset, textcoords="offset points", fontsize=8, zorder=5)
            said.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _side_by_side(axes: Any, named: Sequence[tuple[tuple[float, float], str]]) -> list[tuple[tuple[float, float], str]]:
    """Texts of points so close that they would cover each other become one, each said once, beside the highest."""
    found: list[tuple[tuple[float, float], list[str]]] = []
    for place, text in sorted(named, key=lambda one: -one[0][1]):
        for other, texts in found:
            across, down = np.abs(axes.transData.transform(place) - axes.transData.transform(other))
            if across < NEAR[0] and down < NEAR[1] * len(texts):
                texts.append(text)
                break
        else:
            found.append((place, [text]))
    return [(place, ", ".join(dict.fromkeys(texts))) for place, texts in found]


def size_scale(axes: Any) -> None:
    """A log scale with as many ticks as have room for their labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    )
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.xaxis.set_minor_formatter(NullFormatter())


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Picture, Any]:
    """A figure of this size in inches, and its axes; `options` as in `Figure.subplots`."""
    from search.results.picture import DOTS_PER_INCH, Picture  # matplotlib takes long, and most commands do without

    figure = Picture(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, **options)
    for axes in np.ravel(panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def short(layer: str) -> str:
    """A layer's name for a title: without `.weight`, without its middle if it is long, and without formulas.

    >>> short("backbone.conv3.weight"), short("a" * 20 + "." + "b" * 20 + ".weight")
    ('backbone.conv3', 'aaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbb')
    """
    return literal(short_name(layer))


def short_name(layer: str) -> str:
    """The same for what draws no formulas.

    >>> short("$x$.weight"), short_name("$x$.weight")
    ('\\\\$x\\\\$', '$x$')
    """
    name = printable(layer.removesuffix(".weight"))
    half = (NAME_LENGTH - 1) // 2
    return name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[-(NAME_LENGTH - 1 - half) :]}"


def shorts(layers: Iterable[str]) -> dict[str, str]:
    """`short_names`, as `short` has them."""
    return {layer: literal(name) for layer, name in short_names(layers).items()}


def short_names(layers: Iterable[str]) -> dict[str, str]:
    """Layer -> its `short_name`, no two alike: parts that all names have are left out, or else names are numbered.

    >>> long = "features.a_long_name_of_a_part.{}.and_a_further_one.conv.weight"
    >>> list(short_names([long.format("block1"), long.format("block2")]).values())
    ['…block1', '…block2']
    """
    parts = {layer: layer.removesuffix(".weight").split(".") for layer in layers}
    shared = set.intersection(*map(set, parts.values())) if parts else set()
    apart = {layer: "…" + ".".join(part for part in own if part not in shared) for layer, own in parts.items()}
    for candidates in ({layer: layer for layer in parts}, apart):
        found = {layer: short_name(name) for layer, name in candidates.items()}
        if len({*found.values()}) == len(found):
            return found
    return {layer: f"{place}: {short_name(layer)}" for place, layer in enumerate(parts, start=1)}


def literal(text: str) -> str:
    r"""`text` as matplotlib draws it as it stands: no part between dollars is a formula, and no character a box.

    >>> literal("$x$")
    '\\$x\\$'
    """
    return drawable(text).replace("$", r"\$")


def axis_label(unit: Metric, split: str = "") -> str:
    """`Metric.label`, as matplotlib draws it as it stands."""
    return literal(unit.label(split))


def png_bytes(figure: Picture) -> bytes:
    """The figure as a PNG file that depends only on what is drawn."""
    return figure.png()
