"""A whole study by a training loop and a scoring of the user's own, whose data prunefront never sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from search.files import read_text

OWN = '''
"""Digits, read, trained on and scored by code of its own."""

import os
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from search import Metric, Recipe, Run, Workload
from tiny import Tiny

PIXELS, LABELS = (torch.tensor(part) for part in load_digits(return_X_y=True))
IMAGES = PIXELS.float().view(-1, 1, 8, 8) / 16
ENDS = {"fit": (0, 600), "calibration": (600, 800), "validation": (800, 1200), "test": (1200, 1797)}
SPLITS = {split: slice(*ends) for split, ends in ENDS.items()}


def train(model: nn.Module, run: Run) -> nn.Module:
    steps = round(run.epochs * 12)
    run.begin(steps)
    optimizer = torch.optim.AdamW(model.parameters(), run.learning_rate, weight_decay=0.02)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.learning_rate, steps)
    images, labels = (part[SPLITS["fit"]] for part in (IMAGES, LABELS))
    for _ in range(steps):
        places = torch.randint(len(images), (50,))
        with run.autocast():
            loss = nn.functional.cross_entropy(model(run.put(images[places])), labels[places])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        run.report(loss)
        if run.stage != "dense" and "STEPS" in os.environ:
            with open(os.environ["STEPS"], "a") as file:
                file.write(".")
            time.sleep(0.02)
    return model


def evaluate(model: nn.Module, split: str, run: Run) -> dict[str, float]:
    outputs = model(run.put(IMAGES[SPLITS[split]]))
    labels = LABELS[SPLITS[split]]
    return {
        "right": 100 * float((outputs.argmax(1) == labels).float().mean()),
        "loss": float(nn.functional.cross_entropy(outputs, labels)),
    }


def task():
    return Workload(
        name="own", build_model=Tiny, example_input=IMAGES[:2], train=train, evaluate=evaluate,
        metric=Metric("right", low=0, high=100),
        recipe=Recipe(optimizer="adamw", dense_epochs=8, trial_epochs=2, learning_rate=0.01),
    )
'''
SEARCH = (
    "search", "--workload", "./own.py:task", "--trials", 6, "--max-size", 0.4, "--granularity", "fine-grained,channel",
    "--schedule", "one-shot,polynomial", "--finalists", 1, "--final-repeats", 1, "--cost", "macs",
    "--json",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(place) -> Path:
    (place / "own.py").write_text(OWN)
    return place


@pytest.mark.large
def test_a_study_is_killed_resumed_exported_and_verified(run, program, folder):
    steps = folder / "steps"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STEPS": str(steps)}  # as `run` has it
    root = ("--root", folder / "owned")
    with subprocess.Popen([program, *map(str, (*SEARCH, *root))], cwd=folder, env=environment) as begun:
        journal = folder / "owned" / "own" / "journal"
        until = time.monotonic() + 500
        while time.monotonic() < until and not (journal / "trial-00001.json").exists() and begun.poll() is None:
            time.sleep(0.05)
        assert begun.poll() is None
        size = steps.stat().st_size
        while time.monotonic() < until and steps.stat().st_size < size + 5:
            time.sleep(0.01)
        begun.send_signal(signal.SIGKILL)
    before = {path.name: read_text(path) for path in journal.glob("trial-0000?.json")}
    assert 2 <= len(before) < 6
    ended = run(*SEARCH, *root)
    assert ended.returncode == 0, ended.stderr
    assert "BatchNorm's statistics stay as train leaves them" in ended.stderr
    assert re.search(r"final run \d/\d \(trial \d\): right \d", ended.stderr)
    assert {name: read_text(journal / name) for name in before} == before
    trials = [json.loads(read_text(path)) for path in sorted(journal.glob("trial-0000?.json"))]
    assert [trial["result"]["state"] for trial in trials] == ["complete"] * 6
    assert {trial["result"]["statistics"] for trial in trials} == {"as trained"}
    assert all("restored" not in trial["result"] for trial in trials)
    reply = json.loads(ended.stdout)
    assert reply["front"] and all(row["value"] == pytest.approx(100 * row["accuracy"]) for row in reply["front"])

    whole = run(*SEARCH, "--root", folder / "whole")
    assert whole.returncode == 0, whole.stderr
    twin = [
        json.loads(read_text(path)) for path in sorted((folder / "whole" / "own" / "journal").glob("trial-0*.json"))
    ]
    assert [(one["policy"], one["result"]["accuracy"]) for one in twin] == [
        (one["policy"], one["result"]["accuracy"]) for one in trials
    ]

    exported = run("export", "own", "--trial", "best", "--out", "own-best", *root)
    assert exported.returncode == 0, exported.stderr
    checked = run("verify", "own-best", "--workload", "./own.py:task", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert load_file(folder / "own-best" / "model.safetensors")

    changed = OWN.replace("weight_decay=0.02", "weight_decay=0.03")
    (folder / "own.py").write_text(changed)
    refused = run(*SEARCH, *root)
    (folder / "own.py").write_text(OWN)
    assert refused.returncode == 2 and "was begun with other settings" in refused.stderr
