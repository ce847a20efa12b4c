"""Names in any script are readable in pictures: what the font lacks stands as its number, and nothing warns."""

from __future__ import annotations

import warnings

from search.results.figures import literal, new_figure, short
from search.results.glyphs import drawable


def test_what_the_font_has_stays():
    for text in ("backbone.conv3 5 % ± 0.2, ‖y − y′‖ é ü Ж Ω", "two\nlines\tof a title", ""):
        assert drawable(text) == text


def test_what_it_lacks_is_written_as_its_number():
    assert drawable("\u5377\u79ef.weight") == r"\u5377\u79ef.weight" and drawable("\U00020000") == r"\U00020000"
    assert short("\u5377\u79ef.weight") == r"\u5377\u79ef" and literal("$\u5377$") == r"\$\u5377\$"


def test_no_picture_has_a_box_or_warns_of_one():
    """Titles, legends, labels of axes and names along them; the oracle is matplotlib's own warning."""
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1], label="\u5377")
    axes.set_xticks([0, 1], [short("\u79ef.weight"), "plain"])
    axes.set_ylabel("\u6307\u6807")
    figure.suptitle("\u7814\u7a76")
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.saved("svg")
    shown = {text.get_text() for text in (axes.yaxis.label, figure._suptitle, *axes.get_legend().get_texts())}
    assert shown == {r"\u6307\u6807", r"\u7814\u7a76", r"\u5377"}
    assert [label.get_text() for label in axes.get_xticklabels()] == [r"\u79ef", "plain"]
