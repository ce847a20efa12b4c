"""`inspect`: layers, costs, weights that fit, and its pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from replies import one_line_error

from search.results.device_support import TARGETS
from search.workloads import get_workload
from spaces.granularity import GRANULARITIES


def test_inspect_knows_layers_groups_and_costs(main, tmp_path):
    reply = json.loads(main("inspect", "--root", tmp_path, "--json", "./tiny.py:tiny").out)
    assert reply["parameters"] == 8 * 9 + 16 + 16 * 8 * 9 + 32 + 16 * 10 + 10
    assert reply["macs"] == 72 * 64 + 1152 * 16 + 160
    by_name = {layer["name"]: layer for layer in reply["layers"]}
    assert by_name["conv1.weight"]["shape"] == [16, 8, 3, 3] and by_name["conv1.weight"]["obstacle"] is None
    assert "output" in by_name["classifier.weight"]["obstacle"]
    assert reply["whole"] == {word: ["conv0.weight"] for word in ("1:4", "2:4", "*:4", "*:8")}
    said = "1:4, 2:4, *:4 and *:8 leave whole: conv0.weight (M must divide the inputs of a layer)\n"
    assert said in main("inspect", "--root", tmp_path, "./tiny.py:tiny").out


def test_inspect_says_whether_weights_fit(main, place, tmp_path):
    build = get_workload(f"{place / 'tiny.py'}:tiny").build_model
    state = {f"module.{name}": value for name, value in build().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ck.pt")
    words = ("inspect", "--root", tmp_path, "./tiny.py:tiny", "--weights")
    said = "weights ck.pt fit the network\nweights ck.pt: taken from entry 'state_dict', names without 'module.'"
    assert said in main(*words, tmp_path / "ck.pt").out
    torch.save({**state, "module.conv0.weight": torch.ones(8, 1, 5, 5)}, tmp_path / "other.pt")
    refused = main(*words, tmp_path / "other.pt")
    assert refused.code == 2 and "weights other.pt: tensor 'conv0.weight' has shape (8, 1, 5, 5)" in refused.err


def test_inspect_says_what_each_granularity_brings_where(main, tmp_path):
    found = json.loads(main("inspect", "--root", tmp_path, "--json", "./tiny.py:tiny").out)["targets"]
    said = {(word, one["target"]) for one in found for word in one["granularities"]}
    assert said >= {(word, target) for word in GRANULARITIES for target in ("CPU", "GPU")}
    assert all(one["target"] in TARGETS and one["effect"] and one["source"] for one in found)
    assert "arXiv 2002.08697" in main("inspect", "--root", tmp_path, "--targets", "./tiny.py:tiny").out


def test_inspect_draws_the_trained_weights(main, tmp_path):
    words = ["inspect", "./tiny.py:tiny", "--pictures", tmp_path / "drawn", "--granularity", "fine-grained,kernel"]
    reply = main(*words, "--sparsities", "0.25", "--layer", "conv0.weight", "--json")
    assert reply.code == 0, reply.err
    paths = json.loads(reply.out)["pictures"]
    names = ["weights.png", "weights.json", "shares-0.25.png", "shares.json", "layout-0.25.png", "layout.json"]
    assert paths == [str(tmp_path / "drawn" / name) for name in names] and all(map(os.path.getsize, paths))
    assert json.loads(Path(paths[-1]).read_text())["layer"] == "conv0.weight"
    parts = json.loads(main(*words[:-1], "channel+kernel", "--sparsities", "0.25", "--json").out)["pictures"]
    assert {row["granularity"] for row in json.loads(Path(parts[-1]).read_text())["masks"]} == {"channel", "kernel"}
    one_line_error(main(*words, "--layer", "conv2.weight"), 2, "--layer", "conv2.weight", "conv1.weight")
    one_line_error(main(*words, "--sparsities", "0.5,1.5"), 2, "--sparsities", "1.5", "0.99")
    one_line_error(main(*words, "--sparsities", "0.5,0.5"), 2, "--sparsities", "once", "0.5,0.5")
    one_line_error(main(*words, "--sparsities", "half"), 2, "--sparsities", "half", "0.5,0.75")
    one_line_error(main("inspect", "./tiny.py:tiny", "--layer", "conv0.weight"), 2, "--layer", "--pictures")


def test_inspect_draws_a_criterion_of_channels_by_channels(main, tmp_path):
    words = ["inspect", "./tiny.py:tiny", "--pictures", tmp_path / "drawn", "--sparsities", "0.25"]
    reply = main(*words, "--criterion", "fpgm", "--json")
    assert reply.code == 0, reply.err
    masks = json.loads((tmp_path / "drawn" / "layout.json").read_text())["masks"]
    assert {row["granularity"] for row in masks} == {"channel"}
