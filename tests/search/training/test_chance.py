"""`apply` says which network is no better than chance: the dense model, or else what came of it."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import save_file

from search import get_workload

LAYERS = ("conv0.weight", "conv1.weight", "classifier.weight")


@pytest.fixture
def applied(finished, main, tmp_path):
    """Apply one share to all layers, with the finished study's dense model at hand; the lines that speak of chance."""
    shutil.copytree(finished.root / "cache", tmp_path / "root" / "cache")

    def apply(share: float, *options: object, factory: str = "tiny.py:tiny"):
        file = tmp_path / "dict.json"
        file.write_text(json.dumps(dict.fromkeys(LAYERS, share)))
        words = ["--workload", f"./{factory}", "--root", tmp_path / "root", "--out", tmp_path / "out", *options]
        reply = main("apply", file, *words, "--json")
        assert reply.code == 0, reply.err
        return json.loads(reply.out), [line for line in reply.err.splitlines() if "chance" in line]

    return apply


def test_nothing_is_said_of_a_network_that_does_its_task(applied):
    data, said = applied(0.25)
    assert data["accuracy"] > 0.3 and said == []


def test_a_pruned_network_that_is_dead_is_named_with_both_numbers(applied):
    """The most frequent class has 21 of the 200 validation images: 10.5 %, and 4.3 % for what chance does to it."""
    data, said = applied(0.99, "--schedule", "one-shot")
    assert data["accuracy"] <= 0.1483
    (line,) = said
    assert line.startswith("the pruned network, fine-tuned for 1 epoch, is near chance")
    assert f"accuracy {data['accuracy'] * 100:.2f} %" in line and "up to 14.84 % is no more than chance" in line


def test_of_a_dense_model_that_is_dead_only_that_is_said(applied, place, tmp_path):
    model = get_workload(f"{place / 'tiny.py'}:tiny").build_model()
    for parameter in model.parameters():
        parameter.data.zero_()
    save_file(model.state_dict(), tmp_path / "zeros.safetensors")
    data, said = applied(0.25, "--weights", tmp_path / "zeros.safetensors")
    (line,) = said
    assert (
        line.startswith("the dense model is near chance: accuracy ") and f"{data['dense_accuracy'] * 100:.2f} %" in line
    )


def test_where_chance_is_unknown_nothing_is_said(applied, place):
    """A metric of the user's own, of which nobody knows what chance gives."""
    (place / "own_metric.py").write_text(
        "from tiny import changed\n\n\ndef task():\n"
        "    return changed(name='own', metric=lambda outputs, targets: float((outputs.argmax(1) == targets).sum() > 0)"
        " * 0.01)\n"
    )
    data, said = applied(0.25, factory="own_metric.py:task")
    assert data["accuracy"] == 0.01 and said == []
