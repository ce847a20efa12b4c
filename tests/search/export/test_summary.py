"""An export in a few lines, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from pruning.channels.structure import Structure
from search.export.rebuild import Export
from search.export.summary import ShownManifest, summary
from search.metric import Metric, metric_to_plain
from search.records import COMPLETE, TrialResult, WrittenFile
from spaces.policy import PruningPolicy

MANIFEST = {
    "sparse_bytes": 12_345, "dense_bytes": 567_890, "size_encoded": 0.02174, "accuracy": 0.9265, "test_accuracy": None,
    "macs": 0.979, "files": {"sparsity.json": {"bytes": 1_234}, "policy.json": {"bytes": 56}},
}  # fmt: skip
SIZES = "12,345 of 567,890 bytes = 2.17 %"
FILES = "Files: sparsity.json (1,234 bytes), policy.json (56 bytes), manifest.json"
INT8 = {
    "accuracy": 0.9015, "output_difference": 0.01234, "weights_as_in_policy": ["a", "b"], "weights_rounded_anew": ["c"],
}  # fmt: skip
RMSE = metric_to_plain(Metric("RMSE", best="min", low=0, high=8))


def said(name="", bits=32, given_up=None, origin=None, **changes) -> list[str]:
    file = None if given_up is None else WrittenFile(90, 100, 120, given_up)
    result = TrialResult(COMPLETE, None, 0.9265, 1.0, file=file)
    made = Export(PruningPolicy({"a": 0.5}, bits=bits), nn.Identity(), Structure({}), result, None, None, origin or {})
    return summary(Path("out"), {**MANIFEST, **changes}, made, name).split("\n")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, f"out: validation accuracy 92.65 %, {SIZES}, MACs 97.9 %"),
        ({"test_accuracy": 0.9062}, f"out: validation accuracy 92.65 %, test 90.62 %, {SIZES}, MACs 97.9 %"),
        ({"bits": 4}, f"out: validation accuracy 92.65 %, {SIZES}, 4 bits, MACs 97.9 %"),
        ({"name": "trial 7"}, f"out: trial 7: validation accuracy 92.65 %, {SIZES}, MACs 97.9 %"),
        (
            {"name": "trial 7", "origin": {"seed": 0}},
            f"out: trial 7, seed 0: validation accuracy 92.65 %, {SIZES}, MACs 97.9 %",
        ),
        ({"origin": {"seed": 3}}, f"out: validation accuracy 92.65 %, {SIZES}, MACs 97.9 %"),
        (
            {"metric": RMSE, "accuracy": 0.75, "test_accuracy": 0.625},
            f"out: validation RMSE 2, test 3, {SIZES}, MACs 97.9 %",
        ),
    ],
    ids=["plain", "tested", "rounded", "named", "of a seed", "of a file", "own metric"],
)
def test_the_first_line_is_what_the_export_is_worth(changes, line):
    assert said(**changes) == [line, FILES]


@pytest.mark.parametrize(
    ("given_up", "lines"),
    [
        (0, []),
        (1, ["1 small value set to 0 to fit its predicted bytes"]),
        (1234, ["1,234 small values set to 0 to fit its predicted bytes"]),
    ],
)
def test_values_that_were_given_up_are_counted(given_up, lines):
    assert said(given_up=given_up)[1:] == [*lines, FILES]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "accuracy 90.15 %, 2.50 points worse; outputs differ by up to 1.23 % of the largest; rounded anew: "
            "1 weight",
        ),
        (
            {"accuracy": 0.9365, "weights_rounded_anew": []},
            "accuracy 93.65 %, 1.00 points better; outputs differ by up to 1.23 % of the largest",
        ),
        (
            {"accuracy": 0.9265, "weights_as_in_policy": []},
            "accuracy 92.65 %, the same; outputs differ by up to 1.23 % of the largest",
        ),
    ],
    ids=["worse", "better", "the same"],
)
def test_a_file_of_8_bits_is_compared_with_the_network(changes, words):
    assert said(int8=INT8 | changes)[1:] == [f"In 8 bits by ONNX Runtime: {words}", FILES]


def test_a_manifest_shows_the_lines_and_is_a_dict():
    shown = ShownManifest(MANIFEST, "a line")
    assert repr(shown) == "a line" and shown == MANIFEST
    assert repr(ShownManifest(MANIFEST, "a\x1b[2K name\na line")) == "a\\x1b[2K name\na line", "names are anybody's"
