"""What the front's picture shows beside trials."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from search.metric import SHARE, Metric
from search.results.comparison import Comparison, Reference
from search.results.figures import (
    COLOURS,
    MARKERS,
    _by_point,
    _profile_curves,
    _side_by_side,
    compared_marks,
    front_figure,
    front_png,
    fronts_figure,
    new_figure,
    profile_figure,
    profile_png,
    short_names,
    shorts,
    value_ticks,
)
from search.results.tables import FinalScore, TrialRow
from spaces.sensitivity import Profile, ProfilePoint

REFERENCES = {
    "dense": Reference(0.94, 0.9, 1.0, 1.0),
    "dense at 8 bits": Reference(0.93, 0.9, 0.2, 0.99),
    "dense at 4 bits": Reference(0.85, 0.8, 0.1, 0.8),
}
FINALS = {
    "one": FinalScore("one", 3, 0.92, 0.01, 0.88, 0.02, 0.24, 0.20, 0.25, 2),
    "static": FinalScore("static", 3, 0.91, 0.01, 0.80, 0.02, 0.25, 0.21, 1.0, 1),
}
COMPARISON = Comparison(
    REFERENCES, {"uniform": "gone", "global": "static", "lamp": "static"}, "fine-grained", ("one", "gone")
)


def test_marks_are_dense_roundings_baselines_and_finalists():
    """A baseline without scores is left out; where zeros alone count, rounding makes nothing smaller."""
    dense, static, finalists = compared_marks(COMPARISON, FINALS, "encoded")
    assert dense.points == {(0.2, 0.93): "8 bits", (0.1, 0.85): "4 bits"}
    assert static.points == {(0.25, 0.91): "global, lamp"}
    assert finalists.points == {(0.24, 0.92): ""}
    assert [mark.points for mark in compared_marks(COMPARISON, FINALS, "nonzero")] == [
        {(0.21, 0.91): "global, lamp"}, {(0.20, 0.92): ""},
    ]  # fmt: skip
    assert _by_point([((0.1, 0.2), "a"), ((0.1, 0.3), "b")]) == {(0.1, 0.2): "a", (0.1, 0.3): "b"}


def test_texts_that_would_cover_each_other_become_one():
    """In a figure of 8 by 5 inches, at 120 dots an inch, from 0 to 100 both ways."""
    _, axes = new_figure(8, 5)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    named = [((20, 51), "low"), ((21, 53), "high"), ((20, 60), "apart"), ((40, 53), "aside")]
    assert _side_by_side(axes, named) == [((20, 60), "apart"), ((21, 53), "high, low"), ((40, 53), "aside")]


RMSE = Metric("RMSE", best="min", low=0, dense=20.0)


def test_an_axis_shows_the_values_of_a_metric_where_their_shares_stand():
    """By hand: the share of 20 is 0.9, and of a twentieth more 0.9 / 1.05."""
    _, axes = new_figure(4, 3)
    axes.plot([0, 1], [80, 97])
    value_ticks(axes, SHARE)
    plain = list(axes.get_yticks())
    value_ticks(axes, RMSE)
    found = {label.get_text(): height for label, height in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    assert list(axes.get_yticks()) != plain and found["20"] == pytest.approx(90)
    assert found["21"] == pytest.approx(100 * 0.9 / 1.05) and axes.get_ylim()[0] < 80


def test_pictures_are_in_the_unit():
    rows = [TrialRow(0, accuracy=0.92, size=0.2, granularity="channel", state="complete")]
    points = {"channel": {"conv.weight": (ProfilePoint(0.25, 0.7, 0.8, 0.6, 0.85),)}}
    profile = Profile("m", 60, 0.5, 0.9, points, 1.0)
    unranged = replace(RMSE, dense=40.0)
    for draw in (
        lambda unit: front_png(rows, rows, 0.25, COMPARISON, FINALS, unit=unit),
        partial(profile_png, profile),
    ):
        assert len({draw(unit=unit) for unit in (SHARE, RMSE, unranged)}) == 3
        assert draw(unit=SHARE) == draw(unit=Metric("accuracy", low=0, high=1))


def test_no_name_of_a_metric_is_a_formula():
    """As one the name would be refused, by matplotlib and in the middle of a study's end."""
    rows = [TrialRow(0, accuracy=0.92, size=0.2, granularity="channel", state="complete")]
    unit = Metric(r"m$\frac$", low=0, high=1)
    for picture in (front_figure(rows, rows, 0.25, unit=unit), fronts_figure({"one": rows, "two": []}, unit)):
        assert picture.axes[0].get_ylabel() == r"validation m\$\frac\$, %" and picture.png()
    points = {"channel": {"conv.weight": (ProfilePoint(0.25, 0.7, 0.8, 0.6, 0.85),)}}
    assert profile_png(Profile("m", 60, 0.5, 0.9, points, 1.0), unit)


def test_a_picture_changes_with_each_thing_it_shows():
    rows = [
        TrialRow(n, accuracy=a, size=s, granularity="channel", state="complete")
        for n, (a, s) in enumerate([(0.92, 0.22), (0.88, 0.12), (0.5, 0.05)])
    ]
    plain = front_png(rows, rows[:2], 0.25)
    compared = front_png(rows, rows[:2], 0.25, COMPARISON)
    tuned = front_png(rows, rows[:2], 0.25, COMPARISON, FINALS)
    fewer = replace(COMPARISON, references={"dense": REFERENCES["dense"]})
    pictures = {plain, compared, tuned, front_png(rows, rows[:2], 0.25, fewer, FINALS)}
    assert len(pictures) == 4 and all(picture.startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(("layers", "named"), [(10, [*range(10)]), (23, [17, 12, 7, 2, 22, 21, 16, 11])])
def test_a_panel_names_the_layers_that_are_worst_in_it_and_no_two_alike(layers, named):
    """Layers 2, 7, ... fall furthest, then 1, 6, ...; of these the later further, but 22."""
    lowest = [0.80 - 0.05 * (n % 5) * (n % 5 < 3) - n * 0.001 for n in range(layers)]
    lowest[22:] = [lowest[2] + 0.0005] * (layers > 22)
    curves = {
        f"conv{n}.weight": ([0.0, 0.5, 0.75], (ProfilePoint(0.5, 1, 1, 1, 0.85), ProfilePoint(0.75, 1, 1, 1, low)))
        for n, low in enumerate(lowest)
    }
    _, axes = new_figure(5, 4)
    _profile_curves(axes, Profile("m", 60, 0.5, 0.9, {}, 1.0), "channel", curves, SHARE)
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [f"conv{n}" for n in named]
    assert legend.get_title().get_text() == ("" if layers == 10 else "the 8 most sensitive of 23, worst first")
    drawn = {line.get_label(): line.get_color() for line in axes.get_lines()}
    shown = [drawn[f"conv{n}"] for n in named]
    assert [line.get_color() for line in legend.get_lines()] == shown and len({*shown}) == len(named)
    assert len(drawn) == layers and {drawn[f"conv{n}"] for n in {*range(layers)} - {*named}} <= {"0.85"}


@pytest.mark.parametrize(
    ("fallen", "title"),
    [
        (0, "none of 11 below the dense model"),
        (1, "1 of 11 below the dense model"),
        (7, "7 of 11 below the dense model, worst first"),
        (8, "the 8 most sensitive of 11, worst first"),
        (9, "the 8 most sensitive of 11, worst first"),
    ],
)
def test_of_many_layers_such_as_lose_nothing_are_not_named(fallen, title):
    curves = {
        f"conv{n}.weight": ([0.0, 0.75], (ProfilePoint(0.75, 1, 1, 1, 0.9 - 0.001 * n * (n <= fallen)),))
        for n in range(11)
    }
    _, axes = new_figure(5, 4)
    _profile_curves(axes, Profile("m", 60, 0.5, 0.9, {}, 1.0), "channel", curves, SHARE, {"conv1.weight": 0.25})
    legend = axes.get_legend()
    own = [f"conv{n}" for n in range(fallen, max(fallen - 8, 0), -1)]
    assert [text.get_text().partition(" (")[0] for text in legend.get_texts()] == own
    assert legend.get_title().get_text() == title + " (share of the parameters)" * (fallen > 0)
    assert axes.get_ylim()[1] - axes.get_ylim()[0] >= 5


LONG = "features.denseblock{}.a_rather_long_module_name.{}.weight"


def test_short_names_are_no_two_alike():
    plain = ["a.b.weight", "a.c.weight"]
    assert short_names(plain) == {"a.b.weight": "a.b", "a.c.weight": "a.c"}
    alike = [LONG.format(n, "conv1") for n in (1, 2)] + [LONG.format(1, "conv2")]
    assert [*short_names(alike).values()] == ["…denseblock1.conv1", "…denseblock2.conv1", "…denseblock1.conv2"]
    same = ["a" * 40 + f"{n}" + "b" * 40 for n in (1, 2)]
    assert [*short_names(same).values()] == [f"{n}: {short_names(same[:1])[same[0]]}" for n in (1, 2)]
    assert [*shorts(["$x$.weight"]).values()] == [r"\$x\$"] and short_names([]) == {}


def test_legends_of_long_names_stay_in_the_picture_and_apart():
    layers = [LONG.format(n, f"denselayer{n}.conv1") for n in range(12)]
    points = {layer: (ProfilePoint(0.75, 1, 1, 1, 0.9 - 0.01 * n),) for n, layer in enumerate(layers)}
    profile = Profile("m", 60, 0.5, 0.95, {"fine-grained": points, "channel": points}, 1.0)
    figure = profile_figure(profile, SHARE, dict.fromkeys(layers, 0.0125))
    figure.draw_without_rendering()
    left, right = (axes.get_legend().get_window_extent() for axes in figure.axes)
    assert left.x0 >= 0 and left.x1 <= right.x0 and right.x1 <= figure.bbox.width and left.y0 >= 0
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len({*names}) == 8 and figure.axes[0].bbox.width > 300


EYES = {
    "normal": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What linear light becomes to colour-blind eyes, by Machado, Oliveira and Fernandes (2009)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(light: np.ndarray) -> np.ndarray:
    """CIELAB of linear light under D65."""
    found = TO_XYZ @ np.clip(light, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(found > 0.008856, np.cbrt(found), 7.787 * found + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_granularities_are_told_apart_by_any_eye_and_without_colours(eye):
    rgb = {word: np.array(to_rgb(colour)) for word, colour in COLOURS.items()}
    light = {word: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for word, c in rgb.items()}
    seen = {word: lab(np.array(EYES[eye]) @ one) for word, one in light.items()}
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(seen, 2))
    assert nearest > 12
    grey = {word: lab(one)[0] for word, one in light.items()}
    assert abs(grey["fine-grained"] - grey["channel"]) > 15  # searches' own choices
    assert {*MARKERS} == {*COLOURS} and len({*MARKERS.values()}) == len(MARKERS)


def test_the_front_says_what_is_to_be_seen_and_its_legend_covers_nothing():
    rows = [
        TrialRow(n, accuracy=a, size=s, granularity=g, state="complete")
        for n, (a, s, g) in enumerate([(0.92, 0.22, "channel"), (0.88, 0.12, "channel+2:4"), (0.5, 0.05, "kernel")])
    ]
    figure = front_figure(rows, rows[:2], 0.125, COMPARISON, FINALS, "nonzero")
    (axes,) = figure.axes
    assert axes.get_title() == "Accuracy against stored size: 3 networks, 2 of them on the front"
    assert axes.get_xlabel() == "nonzero size, % of the dense model's (log scale)"
    assert axes.get_ylabel() == "validation accuracy, %"
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:5] == ["channel (1 on the front)", "channel+2:4 (1 on the front)", "kernel (0 on the front)",
                         "most accurate within a size", "limit, 12.5 %"]  # fmt: skip
    figure.canvas.draw()
    assert axes.get_legend() is None and not legend.get_window_extent().overlaps(axes.get_window_extent())
    none = front_figure([rows[0]], [], 0.1, unit=Metric("R$^2$", low=0, high=1))
    assert none.axes[0].get_title() == r"R\$^2\$ against stored size: 1 network, none of them on the front"


def test_members_of_the_front_below_others_of_their_size_are_there_for_speed():
    rows = [
        TrialRow(n, accuracy=a, size=s, granularity="channel", state="complete")
        for n, (a, s) in enumerate([(0.92, 0.22), (0.85, 0.18), (0.88, 0.12), (0.87, 0.14)])
    ]
    (axes,) = front_figure(rows, rows, 0.25).axes
    assert axes.get_title() == "Accuracy against stored size: 4 networks, 4 of them on the front, 2 of these for speed"
    (line,) = [line for line in axes.get_lines() if line.get_label() == "most accurate within a size"]
    assert [*line.get_xdata()] == pytest.approx([12, 22]) and [*line.get_ydata()] == pytest.approx([88, 92])


@pytest.mark.parametrize(("best", "dense", "top"), [(0.92, 0.95, 95.5), (0.97, 1.0, 100), (0.4, 0.3, 41)])
def test_the_axis_of_accuracies_ends_above_what_is_highest_and_has_no_tick_beyond_100(best, dense, top):
    rows = [
        TrialRow(n, accuracy=a, size=0.2 - 0.1 * n, granularity="channel", state="complete")
        for n, a in enumerate([best, 0.05])
    ]
    compared = replace(COMPARISON, references={"dense": Reference(dense, 0.9, 1.0, 1.0)})
    figure = front_figure(rows, rows, 0.25, compared)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    end, highest = axes.get_ylim()[1], 100 * max(best, dense)
    assert highest < end <= min(top + 0.5, 100.25)
    assert all(tick <= 100 for tick in axes.get_yticks() if tick <= end)
