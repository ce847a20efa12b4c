"""`scan`: the profile that it writes, brief or whole, of which bits, sparsities and granularities."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from exports import LAYERS
from replies import one_line_error


def test_scan_writes_profile_and_picture(main, finished, tmp_path):
    reply = main("scan", "--workload", "./tiny.py:tiny", "--out", tmp_path / "scan", "--json")
    assert reply.code == 0, reply.err
    data = json.loads(reply.out)
    stored = json.loads((tmp_path / "scan" / "profile.json").read_text())
    assert set(stored["points"]) == {"fine-grained", "channel"} and stored["points"] == data["points"]
    assert set(stored["points"]["fine-grained"]) == LAYERS and "classifier.weight" not in stored["points"]["channel"]
    assert set(stored["rounding"]) == LAYERS and stored["rounding"] == data["rounding"]
    assert {tuple(p["bits"] for p in points) for points in stored["rounding"].values()} == {(8, 6, 4, 3, 2)}
    assert (tmp_path / "scan" / "profile.png").read_bytes().startswith(b"\x89PNG")
    drawn = ["profile.png", "profile-layers.png", "profile-layers.json"]
    assert data["pictures"] == [str(tmp_path / "scan" / name) for name in drawn]
    layers = json.loads((tmp_path / "scan" / "profile-layers.json").read_text())["layers"]
    assert {layer["layer"]: layer["parameters"] for layer in layers}["conv1.weight"] == 16 * 8 * 9


def test_scan_of_a_deep_network_is_brief_and_draws_its_layers_when_asked(main, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("search.training.profile_cache.DEEP", 1)
    monkeypatch.setattr("search.cli.commands.network.DEEP", 1)
    words = ("scan", "--workload", "./tiny.py:tiny", "--json", "--granularity", "channel", "--out")
    reply = main(*words, tmp_path / "brief")
    data = json.loads(reply.out)
    assert data["brief"] is True and {len(points) for points in data["points"]["channel"].values()} == {4}
    assert data["pictures"] == [str(tmp_path / "brief" / name) for name in ("profile.png", "profile-layers.json")]
    assert "brief scan" in reply.err and "--whole" in reply.err and "--pictures" in reply.err
    assert (
        data["profile"].endswith("profile.json") and '"accuracy": null' in (tmp_path / "brief/profile.json").read_text()
    )
    drawn = json.loads(main(*words, tmp_path / "drawn", "--pictures").out)
    assert str(tmp_path / "drawn" / "profile-layers.png") in drawn["pictures"] and drawn["points"] == data["points"]
    reply = main(*words, tmp_path / "whole", "--whole")
    whole = json.loads(reply.out)
    assert "brief" not in whole and {len(points) for points in whole["points"]["channel"].values()} == {7}
    assert "brief scan" not in reply.err
    shown = main("scan", "--workload", "./tiny.py:tiny", "--granularity", "channel")
    assert shown.code == 0 and "brief" not in shown.err


def test_scan_of_bits(main, finished, tmp_path):
    words = ("scan", "--workload", "./tiny.py:tiny", "--granularity", "channel", "--bits")
    shown = main(*words, "6,3").out
    assert re.search(r"^rounding +6 bits +3 bits$", shown, re.M) and "pruned to a sparsity or rounded to bits" in shown
    shown = main(*words, "32", "--root", tmp_path)
    assert shown.code == 0 and "rounding" not in shown.out and "one layer pruned to a sparsity, " in shown.out
    for bad in ("8,1", "8,,4", "3.5", "33", "eight"):
        reply = main(*words, bad)
        assert reply.code == 2 and reply.err.startswith("prunefront: --bits must be one of 32, 16, 8,"), reply.err


def test_scan_at_sparsities_of_its_own_is_kept_apart(main, finished, tmp_path):
    shutil.copytree(finished.root / "cache", tmp_path / "cache")
    before = set((tmp_path / "cache").glob("profile-*.json"))
    words = ["scan", "--workload", "./tiny.py:tiny", "--root", tmp_path, "--bits", "8"]
    found = json.loads(main(*words, "--sparsities", "0.6,0.25", "--json").out)
    points = found["points"]["fine-grained"]["conv1.weight"]
    assert [round(point["sparsity"], 2) for point in points] == [0.25, 0.6]
    assert Path(found["profile"]) not in before and before <= set((tmp_path / "cache").glob("profile-*.json"))
    one_line_error(main(*words, "--sparsities", "0.5,1.5"), 2, "--sparsities", "1.5")


def test_scan_of_a_combined_word_is_of_its_parts(main, finished, tmp_path):
    words = ("scan", "--workload", "./tiny.py:tiny", "--out", tmp_path / "scan", "--granularity", "channel+kernel")
    assert main(*words).code == 0
    assert set(json.loads((tmp_path / "scan" / "profile.json").read_text())["points"]) == {"channel", "kernel"}
