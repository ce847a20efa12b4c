"""What a study writes down of its network: it comes back, a damaged one counts as none, old files are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.store.folder import StudyFolder
from search.store.outline import LayerOutline, NetworkOutline, shown_outline, shown_profile, write_outline
from spaces.network import Layer, Network, StoredTensor

GOLDEN = Path(__file__).parents[2] / "golden" / "network-v1.json"
CONV = LayerOutline("conv0.weight", "conv2d", (8, 1, 3, 3), 4608)
OUTLINE = NetworkOutline((CONV, LayerOutline("classifier.weight", "linear", (10, 8), 80)), 178, 4688)


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    (tmp_path / "mine").mkdir()
    return StudyFolder(tmp_path, "mine")


def test_the_first_version_is_read_and_written(folder):
    write_outline(folder, OUTLINE)
    written = folder.path / "network.json"
    assert written.read_text() == GOLDEN.read_text() and shown_outline(folder) == OUTLINE
    before = written.stat().st_mtime_ns
    write_outline(folder, OUTLINE)
    assert written.stat().st_mtime_ns == before


def test_shares_are_of_the_whole_model():
    assert OUTLINE.parameter_shares() == {"conv0.weight": 72 / 178, "classifier.weight": 80 / 178}
    assert OUTLINE.mac_shares()["conv0.weight"] == 4608 / 4688
    assert NetworkOutline(OUTLINE.layers, 178, 0).mac_shares() == {"conv0.weight": 0.0, "classifier.weight": 0.0}


def test_an_outline_is_of_what_can_be_pruned():
    layers = Layer("a", "linear", (4, 3), 2), Layer("b", "embedding", (5, 3), 0, prunable=False)
    network = Network((StoredTensor("a", (4, 3)), StoredTensor("b", (5, 3)), StoredTensor("c", (4,))), layers)
    found = NetworkOutline.of(network)
    assert found.layers == (LayerOutline("a", "linear", (4, 3), 24),) and found.parameters == 31


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"layers": [{"name": "x"}]}, {"layers": 3}, {"parameters": -1}, {"parameters": 100},
        {"more": 1}, {"macs": None}, {"layers": []},
        {"layers": [{"name": 1, "kind": "linear", "shape": [1], "macs": 0}]},
        {"layers": [{"name": "x", "kind": "linear", "shape": [0], "macs": 0}], "parameters": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_one_counts_as_none_and_is_named(folder, caplog, change):
    (folder.path / "network.json").write_text(json.dumps(json.loads(GOLDEN.read_text()) | change))
    assert shown_outline(folder) is None and str(folder.path / "network.json") in caplog.text
    assert shown_profile(folder) is None
