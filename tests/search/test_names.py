"""Names that are anybody's: escapes, markup, formulas and endless ones are shown as they are, and steer nothing."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from pruning import ImportanceScores, trace_channels
from pruning.calibration import Calibration
from search.analysis.report_files import layout_files, sensitivity_files, share_files, weight_files
from search.cli import answer, entry
from search.cli.commands.reply import Reply
from search.cli.text_tables import layer_table, render
from search.errors import UsageError
from search.progress import TerminalReporter
from search.results.figures import literal, profile_png, short
from spaces.printable import printable, shortened
from spaces.sensitivity import Profile, ProfilePoint

HOSTILE = {
    "formula": r"$\frac$",
    "open formula": "a$b",
    "markup": "[red]x[/red]",
    "html": "<script>alert(1)</script>",
    "emoji code": ":cross_mark:",
    "unicode": "слой-層-é",
    "erase": "x\x1b[1A\x1b[2K\x1b[8m",
    "c1": "x\x9b2K",
    "lines": "x\nall: verified",
    "turned": "x\u202egnp",
    "long": "l" * 5000,
    "brackets": "blocks[0](x)={y}%s",
}
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    parts = OrderedDict(
        [(name, nn.Conv2d(1, 4, 3)), ("relu", nn.ReLU()), ("flat", nn.Flatten()), ("head", nn.Linear(64, 3))]
    )
    return nn.Sequential(parts).eval()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_layer_of_any_name_is_drawn_and_listed(name):
    model, images = network(name), torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    graph, data = trace_channels(model, images), Calibration(images, torch.arange(6) % 3, nn.functional.cross_entropy)
    importance = ImportanceScores(model, "magnitude-l1", graph, data)
    layer, words = f"{name}.weight", ("fine-grained", "channel")
    points = (ProfilePoint(0.5, 1.25, 0.5, 1.5, 0.25),)
    profile = Profile("m", 6, 1.0, 0.75, {"fine-grained": {layer: points}}, 1.0)
    files = weight_files({"dense": model}) | share_files(importance, words, (0.25,))
    files |= layout_files(importance, layer, words, (0.25,))
    files |= sensitivity_files(profile, graph.network, "s") | {"profile.png": profile_png(profile)}
    assert all(content[:4] == b"\x89PNG" for file, content in files.items() if file.endswith("png"))
    assert set(json.loads(files["weights.json"])["layers"]) == {layer, "head.weight"}
    listed = layer_table(graph.network)
    assert (not STEERING.search(listed) and len(name) > 100) or printable(layer) in listed.replace("\n", "")


def test_no_name_becomes_a_formula():
    from matplotlib.figure import Figure

    for name in (r"$\frac$", "$x$", r"\$x$", r"a\$b$c", "$"):
        figure = Figure()
        drawn = figure.text(0.5, 0.5, short(name))
        text, kind = drawn._preprocess_math(drawn.get_text())
        assert (text, kind) == (name, False)
    assert literal("plain") == "plain"


def test_a_cell_is_one_cell():
    table = render(["check", "result"], [["hash of x\nhash of y  ok\x1b[2K", "FAILED"], [":cross_mark: [red]", "ok"]])
    lines = table.splitlines()
    assert len(lines) == 3 and not STEERING.search(table)
    assert lines[1].split("  ")[0] == r"hash of x\nhash of y" and lines[2].startswith(":cross_mark: [red]")


def test_text_is_plain_and_bounded():
    assert printable("a\x1b[2K\u202e\ud800\x00\t") == r"a\x1b[2K\u202e\ud800\x00\t"
    assert printable("one\ntwo", lines=True) == "one\ntwo" and printable("one\ntwo") == r"one\ntwo"
    assert printable("é 層\u3000·") == "é 層\u3000·"
    assert shortened("a" * 10**6 + "end").endswith("end") and len(shortened("a" * 10**6)) == 4000


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_command_ends_with_is_one_harmless_line(monkeypatch, capfd, name, debug):
    def command(arguments: argparse.Namespace) -> Reply:
        raise UsageError(f"unknown layer {name}")

    monkeypatch.setattr(answer, "_command_of", lambda word: command)
    assert entry.main(["status", "mine", *(["--debug"] if debug else [])]) == 2
    said = capfd.readouterr().err
    assert not STEERING.search(said) and len(said) < 12_000
    assert said.count("prunefront: ") == 1 and (debug or said.count("\n") == 1)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_what_a_command_replies_steers_nothing(monkeypatch, capfd, name):
    reply = Reply({"name": name}, f"first\n{name}\nlast")
    monkeypatch.setattr(answer, "_command_of", lambda word: lambda arguments: reply)
    assert entry.main(["status", "mine"]) == 0
    said = capfd.readouterr().out
    assert not STEERING.search(said) and said.startswith("first\n") and said.endswith("last\n")
    assert entry.main(["status", "mine", "--json"]) == 0
    out = capfd.readouterr().out
    assert json.loads(out) == {"name": name} and out.isascii()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_notes_and_progress_steer_nothing(capfd, name):
    watcher = TerminalReporter()
    watcher.note(f"note {name}")
    watcher.headline(f"trial {name}")
    with watcher.stage(f"stage {name}") as progress:
        progress(1, 2)
    said = capfd.readouterr().err
    assert not STEERING.search(said) and said.count("\n") == 2
    assert printable(name)[:100] in said


def test_a_table_of_trials_with_a_lone_surrogate_is_shown():
    from search.cli.text_tables import front_table
    from search.results.tables import TrialRow

    table = front_table([TrialRow(0, state="failed", reason="error: \ud800\x1b[2K")], with_state=True)
    assert r"\ud800\x1b[2K" in table and table.encode()
