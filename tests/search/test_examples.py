"""The examples of `tests/examples`: what of them can be pruned, and a whole study of each, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tasks import EXAMPLES, TASKS, TRIALS, in_general, layer_counts, measure

from search import get_workload

OUTPUT = "its outputs are the network's outputs"
LAYERS = {  # layers that can lose channels; why others cannot: reason -> those that masks prune, those that stay whole
    "own residual": (11, {OUTPUT: (1, 0)}),
    "own depthwise": (11, {OUTPUT: (1, 0)}),
    "efficient": (31, {OUTPUT: (1, 0)}),
    "transformer": (
        18,
        {OUTPUT: (1, 0), "it is a parameter of ShiftedWindowAttention, of no known layer": (0, 4)},
    ),
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
    "detection, SSD": (36, {OUTPUT: (4, 0)}),
    "Lightning": (4, {OUTPUT: (1, 0)}),
    "Hugging Face": (19, {OUTPUT: (1, 0), "it is a parameter of ViTEmbeddings, of no known layer": (0, 2)}),
}
GARMENTS = Path("/usr/share/datasets/fashion-mnist")
PLACES = {
    "speech, 1-D": Path("/usr/share/asterisk/sounds"),
    **dict.fromkeys(("own residual", "own depthwise", "efficient", "transformer"), GARMENTS),
}
"""Where Debian's packages put the data of tasks that need one."""
LIBRARIES = {"Lightning": "lightning", "Hugging Face": "transformers"}


def needed(name: str) -> None:
    if library := LIBRARIES.get(name):
        pytest.importorskip(library, reason=f"{library} is missing: pip install 'prunefront[{library}]'")
    place = PLACES.get(name)
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("text, transformer", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.large)
            for name in ("speech, 1-D", "segmentation, U-Net", "detection, SSD", "Lightning", "Hugging Face")
        ),
    ],
)
def test_a_study_of_each_is_killed_resumed_exported_and_verified(name, tmp_path, program):
    needed(name)
    row = measure(name, tmp_path)
    assert row["trials"] == TRIALS and row["kept"] >= 2 and row["resumed"] and row["verified"]
    assert float(row["size"]) <= 0.5 and row["lines"] > 0


def test_every_example_is_a_task_and_short():
    """Of the table, and one file of at most a hundred lines; one with a loop and scores of its own is longer."""
    named = {task.workload.partition(".py:")[0] for task in TASKS.values() if ".py:" in task.workload}
    assert named == {path.stem for path in EXAMPLES.glob("*.py")}
    assert all(task.lines <= (140 if name == "detection, SSD" else 100) for name, task in TASKS.items())


class Oracle:
    """In place of a detector: the true boxes at a score of 0.5, and false ones at a higher one."""

    def __init__(self, targets, missed: int = 0, false: int = 0) -> None:
        self.targets, self.missed, self.false = iter(targets), missed, false

    def eval(self) -> None: ...

    def __call__(self, images):
        return [self.found(next(self.targets)["boxes"]) for _ in images]

    def found(self, boxes):
        if self.missed:
            self.missed -= 1
            boxes = boxes[:0]
        wrong = torch.tensor([[0.0, 0.0, 3.0, 3.0]] * min(self.false, 1)).reshape(-1, 4)
        self.false -= len(wrong)
        scores = torch.tensor([0.9] * len(wrong) + [0.5] * len(boxes))
        return {"boxes": torch.cat([wrong, boxes]), "scores": scores}


def test_average_precision_of_the_detector_is_the_area_under_its_curve():
    task = get_workload(f"{EXAMPLES / 'detection.py'}:detection")
    images, targets = task.train.__globals__["scenes"]("validation")
    run = SimpleNamespace(put=lambda batch: batch, batch=7)

    def precision(**faults: int) -> float:
        return task.evaluate(Oracle(targets, **faults), "validation", run)

    boxes = sum(len(target["boxes"]) for target in targets)
    lost = sum(len(target["boxes"]) for target in targets[:9])
    assert len(images) == 80 and lost > 9
    assert precision() == pytest.approx(1)
    assert precision(missed=9) == pytest.approx((boxes - lost) / boxes)
    assert precision(false=12) == pytest.approx(boxes / (boxes + 12))  # each true box comes after them
    assert precision(missed=80) == 0
    hits = task.train.__globals__["hits"]
    overlaps = torch.tensor([[0.625, 0.125], [0.75, 0.25], [0.125, 0.5]])
    assert hits(overlaps, [0.9, 0.8, 0.3]) == [(0.9, True), (0.8, False), (0.3, True)]
