"""What stands in the tables of a terminal, by hand."""

from __future__ import annotations

import pytest

from search.cli import text_tables
from search.cli.text_tables import (
    front_table,
    fronts_table,
    layer_table,
    profile_table,
    rounding_table,
    target_blocks,
    whole_table,
)
from search.metric import SHARE, Metric
from search.results.device_support import Statement
from search.results.tables import TrialRow
from spaces.network import Layer, Network, StoredTensor
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

MAP = Metric("mAP", low=0, high=50)
NETWORK = Network(
    (StoredTensor("w", (66, 2)), StoredTensor("b", (86,))),
    (
        Layer("w", "linear", (66, 2), 3, channel_group=5, obstacle="it is the last"),
        Layer("e", "embedding", (7, 4), 0, obstacle="it is looked up", prunable=False),
    ),
    other_macs=1200,
)
"""A file of 1,000 bytes: 528 of w, 344 of b, and the header."""


@pytest.fixture
def columns(monkeypatch):
    """Makes stdout a terminal of so many columns."""
    return lambda number: monkeypatch.setattr(type(text_tables.SCREEN), "columns", number)


def words(table: str) -> list[str]:
    return [" ".join(line.split()) for line in table.split("\n")]


def row(number: int, **changes) -> TrialRow:
    costs = {"size_encoded": 0.0625, "size_nonzero": 0.4, "macs": 0.979, "latency": 0.951}
    fields = {"accuracy": 0.9265, "test_accuracy": 0.9262, "test_sd": 0.0017, "granularity": "channel", "bits": 4}
    return TrialRow(number, **{**costs, **fields, **changes})


def test_a_row_of_the_front_has_each_value_under_its_name():
    found = row(7, final_accuracy=0.9271, schedule="one-shot", origin="lamp", state="failed", reason="out of memory")
    assert words(front_table([found], with_state=True)) == [
        "trial accuracy final test encoded nonzero MACs latency granularity bits schedule origin state",
        "7 92.65 % 92.71 % 92.62 ± 0.17 % 6.2 % 40.0 % 97.9 % 95.1 % channel 4 one-shot lamp failed: out of memory",
    ]
    assert words(front_table([TrialRow(7, state="running")], with_state=True))[1].endswith("- running")


def test_of_all_trials_test_scores_go_before_costs(columns):
    columns(86)
    shown = front_table([row(7, final_accuracy=0.9271, granularity="fine-grained", state="complete")], with_state=True)
    assert words(shown)[0] == "trial accuracy encoded MACs latency granularity bits state"


def test_fronts_stand_side_by_side_from_the_largest_on(columns):
    own = [row(3, size_encoded=0.2, size_nonzero=0.1), row(5, bits=32)]
    fronts = {"one": own, "two": [row(4, size_encoded=0.12345, accuracy=0.5, macs=0.25, latency=0.5)]}
    units = {"one": SHARE, "two": MAP}
    table = fronts_table(fronts, units, latency=True)
    assert words(table) == [
        "encoded one two MACs latency trial granularity bits",
        "20.00 % 92.65 % 97.9 % 95.1 % 3 channel 4",
        "12.35 % 25 25.0 % 50.0 % 4 channel 4",
        "6.25 % 92.65 % 97.9 % 95.1 % 5 channel 32",
    ]
    header, first, second, _ = table.split("\n")
    assert (first.index("92.65 %"), second.index("25 ")) == (header.index("one"), header.index("two"))
    by_nonzero = words(fronts_table(fronts, units, "nonzero"))
    assert by_nonzero[0] == "nonzero one two MACs trial granularity bits"
    assert [line.split()[0] for line in by_nonzero[1:]] == ["40.00", "40.00", "10.00"]
    columns(60)
    assert words(fronts_table(fronts, units, latency=True))[4].startswith("(left out at 60 columns: bits;")


def test_layers_and_all_else_that_is_stored_are_listed_with_their_costs(columns):
    assert words(layer_table(NETWORK)) == [
        "layer kind shape parameters size MACs group channels cannot go because",
        "w linear 66x2 132 52.8 % 396 5 it is the last",
    ]
    assert words(whole_table(NETWORK)) == [
        "stored besides kind shape parameters size MACs stays whole because",
        "e embedding 7x4 28 0.0 % 0 it is looked up",
        "other parameters - - - 34.4 % - "
        "biases, and scales of norms and PReLUs, only go with the channels they belong to",
        "header - - - 12.8 % - names, shapes and offsets in the file",
        "other products - - - - 1,200 parts of weights, buffers and constants that are multiplied do not shrink",
    ]
    assert "other products" not in whole_table(Network(NETWORK.tensors, NETWORK.layers))
    for room, left_out in ((81, ""), (74, "kind;"), (66, "kind, group;"), (54, "kind, parameters, group;")):
        columns(room)
        assert (f"(left out at {room} columns: {left_out}" in layer_table(NETWORK)) is bool(left_out)


def profile(points, rounding=None) -> Profile:
    return Profile("model", 60, 0.5, 0.875, {"kernel": points}, 2.5, rounding=rounding or {})


def levels(*sparsities: float) -> list[ProfilePoint]:
    return [ProfilePoint(sparsity, 0.5, 0.125, 0.5, 1 - sparsity / 2) for sparsity in sparsities]


def test_a_scan_is_listed_by_the_levels_that_most_layers_have():
    layers = {"few": levels(0.3, 0.5), "one": levels(0.25, 0.5, 0.75), "two": levels(0.25, 0.5, 0.75)}
    table, said = profile_table(profile(layers), "kernel").split("\n\n")
    assert words(table) == [
        "kernel 25 % 50 % 75 %", "few 30 %: 85.0 % 75.0 % -", "one 87.5 % 75.0 % 62.5 %", "two 87.5 % 75.0 % 62.5 %"
    ]  # fmt: skip
    assert said == "a cell with a sparsity of its own: the layer has too few units for the column's"
    layers = {"one": levels(0.25, 0.5), "two": levels(0.25, 0.5)}
    assert words(profile_table(profile(layers), "kernel", MAP)) == [
        "kernel 25 % 50 %",
        "one 43.75 37.5",
        "two 43.75 37.5",
    ]
    assert profile_table(profile({}), "kernel") == "kernel"


@pytest.mark.parametrize(
    ("sparsities", "headings"),
    [
        ((0.004, 0.5), "0.4 % 50.0 %"), ((0.5, 0.996), "50.0 % 99.6 %"), ((0.5, 0.99996), "50.000 % 99.996 %"),
        ((0.5, 0.999996), "50.0000 % 99.9996 %"), ((0.5, 0.9999996), "50.0000 % 100.0000 %"),
    ],
)  # fmt: skip
def test_no_level_looks_like_nothing_or_all_as_far_as_four_decimals_go(sparsities, headings):
    assert words(profile_table(profile({"one": levels(*sparsities)}), "kernel"))[0] == f"kernel {headings}"


def test_the_least_levels_of_a_scan_are_what_a_narrow_terminal_shows_first(columns):
    columns(26)
    first, second = profile_table(profile({"one": levels(0.25, 0.5, 0.75)}), "kernel").split("\n\n")
    assert (words(first)[0], words(second)[0]) == ("kernel 25 % 50 %", "kernel 75 %")


def test_rounding_is_listed_by_bits_from_the_most_on():
    points = {
        "one": [RoundingPoint(4, 0.5, 0.125, 0.5, 0.625), RoundingPoint(8, 0.5, 0.125, 0.5, 0.75)],
        "two": [RoundingPoint(4, 0.5, 0.125, 0.5, 0.5)],
    }
    assert words(rounding_table(profile({}, points))) == [
        "rounding 8 bits 4 bits", "one 75.0 % 62.5 %", "two - 50.0 %"
    ]  # fmt: skip
    assert words(rounding_table(profile({}, points), MAP))[1] == "one 37.5 31.25"


def test_long_names_of_layers_lose_their_middle(columns):
    columns(50)
    name = f"{'backbone.' * 6}weight"
    kept = "backbone.backbone.ba…kbone.backbone.weight"
    points = {name: [RoundingPoint(4, 0.5, 0.125, 0.5, 0.75)]}
    assert words(rounding_table(profile({}, points)))[1] == f"{kept} 75.0 %"
    assert words(profile_table(profile({name: levels(0.5)}), "kernel"))[1] == f"{kept} 75.0 %"


def test_blocks_of_targets_have_their_own_statements_and_break_between_words(monkeypatch):
    long = "of the dense network's latency on " + "a-processor-with-a-name-of-very-many-words"
    said = [
        Statement(("channel",), "a runtime", long, "measured", smaller=True, faster=True),
        Statement((), "a chip", "faster", "its maker", smaller=False, faster=True, bits=(8,)),
    ]
    monkeypatch.setattr(text_tables, "STATEMENTS", said)
    monkeypatch.setattr(text_tables, "TARGETS", ("a chip", "a runtime"))
    assert target_blocks() == (
        "a chip\n  8 bits: faster\n      faster (its maker)\n\n"
        "a runtime\n  channel: smaller and faster\n      of the dense network's latency on\n"
        "        a-processor-with-a-name-of-very-many-words (measured)"
    )
