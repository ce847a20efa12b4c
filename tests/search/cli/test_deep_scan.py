"""The scan of a network of 40 layers by the command: brief, killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal

import pytest

from pruning.analysis.sensitivity_scan import BRIEF_LEVELS, BRIEF_PASSES
from search.training.scan_points import KeptPoints

KEPT = 5
DEEP = f"""
import os, signal
from pathlib import Path

import torch
from torch import nn

from search import Workload
from search.workloads.choices import AS_BUILT


def build():
    torch.manual_seed(3)
    hidden = [part for _ in range(38) for part in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())]
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(), *hidden, nn.Linear(6, 4))


def loss(outputs, targets):
    for points in Path(os.environ.get("KILLED", "nowhere")).glob("*.points.jsonl"):
        if points.read_text().count("\\n") == {KEPT}:
            os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(outputs, targets)


def deep():
    draw = torch.Generator().manual_seed(5)

    def split(count):
        return torch.randn(count, 7, generator=draw), torch.randint(4, (count,), generator=draw)

    data = {{name: split(300) for name in ("fit", "calibration", "validation", "test")}}
    return Workload(name="deep", build_model=build, weights=AS_BUILT, loss=loss, **data)
"""


@pytest.mark.slow
def test_a_scan_of_forty_layers_is_brief_and_goes_on_after_a_kill(run, main, tmp_path):
    (tmp_path / "deep.py").write_text(DEEP)
    cache = tmp_path / "root" / "cache"
    workload = f"{tmp_path / 'deep.py'}:deep"
    words = ("scan", "--workload", workload, "--root", tmp_path / "root", "--granularity", "channel", "--json")
    killed = run(*words, env={**os.environ, "KILLED": str(cache)})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (path,) = cache.glob("profile-*.points.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == KEPT
    lines[1]["point"]["recalibrated_loss"] = 77.25  # which no scan finds
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(KeptPoints(path.with_name(path.name.split(".")[0])).known) == KEPT

    reply = main(*words)
    assert reply.code == 0, reply.err
    profile = json.loads(reply.out)
    levels, channels = len(BRIEF_LEVELS), profile["points"]["channel"]
    assert profile["brief"] is True and len(channels) == 39
    assert {len(points) for points in channels.values()} == {levels} and len(profile["rounding"]) == 40
    assert {len(points) for points in profile["rounding"].values()} == {1}
    assert profile["examples"] == BRIEF_PASSES // (39 * levels + 40) < 300
    found = [(key, n) for key, points in channels.items() for n, p in enumerate(points) if p["recalibrated_loss"] > 50]
    assert found == [(lines[1]["layer"], 1)]
    assert not path.exists() and "brief scan of a network of more than 32 layers" in reply.err
    assert "--pictures draws the curves" in reply.err
    assert [p.rpartition(".")[2] for p in profile["pictures"]] == ["png", "json"]
