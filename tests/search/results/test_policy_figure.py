"""The picture of a policy says of every layer what the policy says, and its texts neither overlap nor leave it."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.colors import to_rgb

from search.results.figures import COLOURS
from search.results.policy_figure import policy_figure
from spaces.policy import PruningPolicy

LAYERS = [f"features.stage{n // 8}.block{n % 8}.a_rather_long_name.conv{n % 3}.weight" for n in range(50)]
MIXED = PruningPolicy(
    {name: n / 60 for n, name in enumerate(LAYERS[:-1])},
    {name: ("fine-grained", "kernel", "2:4")[n % 3] for n, name in enumerate(LAYERS)},
    bits={name: (3, 8)[n % 2] for n, name in enumerate(LAYERS[1:])},
)


def bars(axes):
    """Row -> (width, granularity by its colour) of each bar."""
    words = {to_rgb(colour): word for word, colour in COLOURS.items()}
    found = {}
    for bar in axes.patches:
        row = bar.get_y() + bar.get_height() / 2
        found.setdefault(round(row), []).append((bar.get_width(), words[bar.get_facecolor()[:3]]))
    return found


def test_every_layer_has_its_share_granularity_and_bits():
    shares = {name: n / 2000 for n, name in enumerate(LAYERS)}
    removed, bits, parameters = policy_figure(MIXED, LAYERS, "Trial 1", shares).axes
    found = bars(removed)
    assert list(found) == list(range(1, 49))  # the first asks for 0, and the last for nothing
    for row, name in list(enumerate(LAYERS))[1:-1]:
        assert found[row] == [(pytest.approx(100 * MIXED.sparsity[name]), MIXED.granularity_of(name))]
    (dots,) = bits.collections
    below, above = (
        [label.get_text() for tick in bits.xaxis.get_major_ticks() if (label := getattr(tick, name)).get_visible()]
        for name in ("label1", "label2")
    )
    columns = below
    assert below == above == ["3", "8", "32"]  # 50 layers reach far
    assert [int(columns[round(x)]) for x, _ in dots.get_offsets()] == [MIXED.bits_of(name) for name in LAYERS]
    assert [round(bar.get_width(), 2) for bar in parameters.patches][:3] == [0, 0.05, 0.1]
    low, high = removed.get_ylim()
    assert low > high  # the first layer is on top


def test_next_to_nothing_is_not_written_as_nothing_nor_nearly_all_as_all():
    policy = PruningPolicy({"a.weight": 0.0003, "b.weight": 0.996, "c.weight": 0.0}, "kernel")
    removed = policy_figure(policy, [f"{name}.weight" for name in "abc"], "small").axes[0]
    assert [text.get_text() for text in removed.texts] == ["0.03", "99.6", "whole"]
    assert not any(tick.label2.get_visible() for tick in removed.xaxis.get_major_ticks())


def test_a_removal_stands_above_the_masks_of_its_layer():
    policy = PruningPolicy({"a.weight": 0.25, "b.weight": 0.5}, "kernel", removal={"a.weight": 0.75})
    figure = policy_figure(policy, ["a.weight", "b.weight"], "two $stages$")
    removed = figure.axes[0]
    assert bars(removed) == {0: [(75, "channel"), (25, "kernel")], 1: [(50, "kernel")]}
    assert removed.patches[0].get_y() < removed.patches[1].get_y()
    assert [text.get_text() for text in removed.texts] == ["75", "25", "50"]
    assert "channels go first" in figure.legends[0].get_title().get_text()


def test_names_stay_readable_at_half_the_size():
    figure = policy_figure(MIXED, LAYERS, "Trial 1")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 50 and min(box.height for box in boxes) / 2 >= 7
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    assert all(a.y0 >= b.y1 - 1 for a, b in itertools.pairwise(boxes))


def test_a_policy_that_removes_nothing_is_drawn():
    figure = policy_figure(PruningPolicy({}, bits=8), LAYERS[:2], "8 bits")
    assert [text.get_text() for text in figure.axes[0].texts] == ["whole", "whole"] and not figure.legends
    assert figure.png()[:4] == b"\x89PNG"
