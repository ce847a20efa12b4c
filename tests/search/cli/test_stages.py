"""What `apply` shows of the dense, the pruned and the tuned network is what these networks have."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from search import get_workload
from search.cli.stages import Stage, stages_data, stages_table
from search.metric import SHARE, Metric
from spaces.cost.counts import RelativeCost

DICT = {"conv0.weight": 0.25, "conv1.weight": 0.75}


def right(model, split):
    """Share of examples named right, counted here."""
    with torch.no_grad():
        return float((model.eval()(split[0]).argmax(1) == split[1]).double().mean())


@pytest.fixture(scope="module")
def tiny(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


def test_three_networks_are_told(main, tiny, tmp_path):
    file = tmp_path / "dict.json"
    file.write_text(json.dumps(DICT))
    words = ["apply", file, "--workload", "./tiny.py:tiny", "--root", tmp_path / "root", "--epochs", 1.5]
    reply = main(*words, "--out", tmp_path / "out", "--json")
    assert reply.code == 0, reply.err
    told = json.loads(reply.out)
    dense, pruned, tuned = told["networks"]
    assert [one["network"] for one in told["networks"]] == ["dense", "pruned", "fine-tuned"]
    assert told["epochs"] == 1.5
    for found, path in ((dense, next((tmp_path / "root" / "cache").glob("dense-*.safetensors"))),
                        (tuned, tmp_path / "out" / "model.safetensors")):  # fmt: skip
        model = tiny.build_model()
        model.load_state_dict(load_file(path))
        assert found["accuracy"] == pytest.approx(right(model, tiny.validation))
        assert found["test_accuracy"] == pytest.approx(right(model, tiny.test))
    assert pruned["test_accuracy"] is None and pruned["accuracy"] < dense["accuracy"]
    assert told["test_accuracy"] == tuned["test_accuracy"] != dense["test_accuracy"]
    assert (dense["size_encoded"], dense["macs"]) == (1, 1)
    assert pruned["size_nonzero"] == tuned["size_nonzero"] == told["size_nonzero"]
    again = main(*words, "--out", tmp_path / "again")
    rows = [line.split("  ") for line in again.out.splitlines()[2:6]]
    assert [row[0].strip() for row in rows] == ["network", "dense", "pruned", "fine-tuned"]
    assert f"{100 * tuned['test_accuracy']:.2f} %" in again.out.splitlines()[5]


def test_what_is_not_known_is_a_dash():
    unit = Metric("mAP", low=0, high=50)
    stages = [Stage("pruned", None, None, None), Stage("fine-tuned", 0.5, 0.25, None)]
    assert stages_table(stages, unit).splitlines()[1:] == [
        "pruned               -     -        -        -     -",
        "fine-tuned          25  12.5        -        -     -",
    ]
    assert stages_data(stages, unit)[1]["value"] == 25 and "value" not in stages_data(stages, SHARE)[1]


def test_costs_stand_under_their_names():
    stages = [Stage("pruned", 0.9375, None, RelativeCost(0.25, 0.375, 0.75, 0.125))]
    header, row = (" ".join(line.split()) for line in stages_table(stages, SHARE).splitlines())
    assert (header, row) == ("network validation test encoded nonzero MACs", "pruned 93.75 % - 25.0 % 37.5 % 75.0 %")
    (data,) = stages_data(stages, SHARE)
    assert data == {
        "network": "pruned", "accuracy": 0.9375, "test_accuracy": None, "size_encoded": 0.25, "size_nonzero": 0.375,
        "macs": 0.75,
    }  # fmt: skip
    assert stages_data([Stage("pruned", None, None, None)], SHARE)[0]["size_encoded"] is None
