"""What a command says of a workload: its metric, its data, its weights, and what its code prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from exports import LAYERS
from replies import one_line_error

METRICS = {
    "psnr": ["'psnr'", "a share, 0 to 1, larger is better", "got 30.25 of the untrained network", "search.Metric("],
    "unmeasured": ["'unmeasured'", "metric of the untrained network", "KeyError: 'no such class'", "a share, 0 to 1"],
    "late": ["'late'", "got nan of the dense model on validation data"],
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("command", ["search", "scan", "apply"])
def test_a_metric_that_is_no_share_is_refused_before_it_costs_anything(main, place, tmp_path, command, name):
    (place / "dict.json").write_text('{"conv1.weight": 0.25}')
    words = ["dict.json", "--out", tmp_path / "out"] if command == "apply" else []
    reply = main(command, *words, "--root", tmp_path, "--workload", f"./tiny.py:{name}", "--json")
    said = json.loads(reply.out)
    assert said["exit_code"] == 2 and reply.out.count("\n") == 1
    reply.out = ""
    one_line_error(reply, 2, *METRICS[name])
    assert bool(list(tmp_path.glob("cache/dense-*"))) == (name == "late")
    assert not list(tmp_path.glob("cache/profile-*")) and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*/study.json"))


def test_missing_data_is_an_environment_problem_before_any_study_exists(main, place):
    root = place / "nodata"
    reply = main("search", "--root", root, "--workload", "fashion-mnist", "--data", place / "nowhere")
    one_line_error(reply, 3, "nowhere", "--data")
    assert not (root / "fashion-mnist").exists()


@pytest.mark.slow
def test_unsafe_weights_are_refused_and_never_run(run, place, tmp_path):
    canary = tmp_path / "canary"
    bad = tmp_path / "weights.pt"
    torch.save({"conv0.weight": _Touch(canary)}, bad)
    ended = run("search", "--root", tmp_path / "root", "--workload", "./tiny.py:tiny", "--weights", bad)
    one_line_error(ended, 4, "weights.pt", "safetensors")
    assert not canary.exists()
    torch.load(bad, weights_only=False)
    assert canary.exists()  # the file would have run its code


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_json_stdout_holds_nothing_a_workload_prints(run, tmp_path):
    ended = run("inspect", "--root", tmp_path, "--json", "./tiny.py:chatty")
    reply = json.loads(ended.stdout)
    assert reply["workload"] == "chatty" and {layer["name"] for layer in reply["layers"]} == LAYERS
    assert "hello from the factory" in ended.stderr and "hello from a child process" in ended.stderr
