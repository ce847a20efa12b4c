"""The examples of `tests/examples`: what of them can be pruned, and a whole study of each, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tasks import TASKS, TRIALS, in_general, layer_counts, measure

OUTPUT = "its outputs are the network's outputs"
LAYERS = {  # layers that can lose channels; why others cannot: reason -> those that masks prune, those that stay whole
    "own residual": (11, {OUTPUT: (1, 0)}),
    "own depthwise": (11, {OUTPUT: (1, 0)}),
    "speech, 1-D": (9, {OUTPUT: (1, 0)}),
    "text, transformer": (
        6,
        {
            OUTPUT: (1, 0),
            "it is a parameter of Writer, of no known layer": (0, 1),
            "Embedding looks its rows up: tables stay whole": (0, 1),
            "MultiheadAttention splits its product into heads: only its out_proj is a layer of its own": (0, 2),
        },
    ),
    "segmentation, U-Net": (12, {OUTPUT: (1, 0)}),
    "segmentation, LR-ASPP": (64, {OUTPUT: (2, 0)}),
}
PLACES = {"speech, 1-D": Path("/usr/share/asterisk/sounds"), "own": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's packages put the data of tasks that need one."""


def needed(name: str) -> None:
    place = PLACES.get(name) or (PLACES["own"] if name.startswith("own") else None)
    if place and not place.is_dir():
        pytest.skip(f"no data in {place}: install the Debian packages that .ci/run names")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_examples_are_found_and_those_that_stay_have_their_reasons(name, main):
    needed(name)
    reply = main("inspect", *TASKS[name].words, "--json")
    assert reply.code == 0, reply.err
    found = json.loads(reply.out)
    removable, reasons = LAYERS[name]
    counts = layer_counts(found)
    assert counts["removable"] == removable
    held = [layer for layer in found["layers"] if layer["obstacle"]]
    for reason, (masked, whole) in reasons.items():
        own = [layer["prunable"] for layer in held if in_general(layer["obstacle"]) == reason]
        assert (own.count(True), own.count(False)) == (masked, whole), reason
    assert len(held) == sum(masked + whole for masked, whole in reasons.values())
    assert (counts["masked"], counts["whole"]) == tuple(map(sum, zip(*reasons.values(), strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speech, 1-D", "text, transformer", "segmentation, U-Net"])
def test_a_study_of_each_is_killed_resumed_exported_and_verified(name, tmp_path, program):
    needed(name)
    row = measure(name, tmp_path)
    assert row["trials"] == TRIALS and row["kept"] >= 2 and row["resumed"] and row["verified"]
    assert float(row["size"]) <= 0.5 and row["lines"] > 0


def test_every_example_is_a_task_and_short():
    """Of the table, and one file of at most a hundred lines."""
    folder = Path(__file__).parents[1] / "examples"
    named = {task.workload.partition(".py:")[0] for task in TASKS.values() if ".py:" in task.workload}
    assert named == {path.stem for path in folder.glob("*.py")}
    assert max(task.lines for task in TASKS.values()) <= 100
