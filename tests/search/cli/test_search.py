"""`search`: what it refuses before any training, and what it says at its end."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from exports import sparse_file
from hand_made_study import with_pairs
from replies import one_line_error

from search.cli.commands.study import _search_text as search_text
from search.results.view import open_study
from search.study.result import SearchResult


def test_an_unreachable_limit_names_the_range_before_any_training(main, place):
    root = place / "unreachable"
    reply = main("search", "--root", root, "--workload", "./tiny.py:tiny", "--max-size", 0.01)
    one_line_error(reply, 2, "0.01", "cannot be reached", "--max-size")
    smallest = float(re.search(r"reachable is ([\d.]+) to 0\.", reply.err).group(1))
    needed = float(re.search(r"at least ([\d.]+)", reply.err).group(1))
    assert 0.01 < smallest <= needed < 1
    assert not (root / "cache").exists() and not (root / "tiny").exists()


@pytest.mark.slow
def test_a_file_as_root_is_an_environment_problem(run, tmp_path):
    (tmp_path / "file").write_text("")
    one_line_error(run("search", "--root", tmp_path / "file", "--trials", 1), 3, "file", "--root")
    assert (tmp_path / "file").read_text() == ""


def test_search_json_is_one_object_with_the_front_and_finals(finished):
    reply = finished.reply
    assert finished.stdout.count("\n") == 1
    assert reply["study"] == "tiny" and reply["trials"] == {
        "complete": 8, "stopped-early": 0, "failed": 0, "running": 0, "waiting": 0,
    }  # fmt: skip
    assert reply["best"] in {row["trial"] for row in reply["front"]}
    names = {row["name"] for row in reply["finals"]}
    assert {"dense", *(f"dense at {n} bits" for n in (8, 6, 4)), f"trial {reply['best']}"} <= names
    assert max(row["runs"] for row in reply["finals"]) == 3
    assert all(row["size"] <= finished.limit for row in reply["front"])


def test_time_left_includes_finals_and_is_never_nothing(finished):
    """Of 8 trials, 2 finalists and their baselines, of which some may be one policy; one of each has 3 runs."""
    lines = [line for line in finished.stderr.splitlines() if re.match(r"(trial|final run) \d+", line)]
    trials = [line for line in lines if line.startswith("trial") and "best so far" in line]
    finals = [line for line in lines if re.match(r"final run \d+/\d+ \([a-z0-9 ]+\): [\d.]+ % on validation", line)]
    assert len(trials) == 8 and len(finals) in range(4, 3 * 4 + 1)
    assert all(re.search(r"about [\d.]+ (s|min)", line) for line in trials + finals[:-1])
    assert "left" not in finals[-1] and not any(re.search(r"\b0\.0 s", line) for line in lines)


def test_where_a_study_ran_is_on_record(finished):
    assert json.loads((finished.path / "study.json").read_text())["environment"]["threads"] == 1
    with closing(sqlite3.connect(finished.root / "mlflow.db")) as store:
        found = store.execute("select value from params where key = 'threads'").fetchall()
    assert found == [("1",)]


def test_the_closing_table_shows_macs(finished):
    rows = {row["name"]: row for row in finished.reply["finals"]}
    assert rows["dense"]["macs"] == rows["dense at 6 bits"]["macs"] == 1.0
    by_digest = {}
    for path in (finished.path / "journal").glob("final-*.json"):
        record = json.loads(path.read_text())
        by_digest.setdefault(record["digest"], set()).add(record["result"]["shares"]["macs"])
    trials = {row["trial"]: row["digest"] for row in finished.reply["front"]}
    shown = {name: row["macs"] for name, row in rows.items() if name.startswith("trial")}
    assert shown and all({macs} == by_digest[trials[int(name.split()[1])]] for name, macs in shown.items())


def test_below_the_closing_table_static_rules_of_one_network_are_told(finished):
    view = open_study(finished.root, finished.name)
    finalist = view.state.comparison.finalists[0]

    def below(baselines):
        view.state.comparison = replace(view.state.comparison, baselines=baselines, matched={})
        text = search_text(SearchResult(finished.name, finished.path, view.state, {}), "mlruns")
        return [line for line in text.splitlines() if line.startswith("Static rules")]

    assert below({"uniform": finalist, "lamp": finalist}) == [
        "Static rules that come to one network: uniform and lamp."
    ]
    assert below({"lamp": finalist}) == []


def test_static_rules_as_good_as_their_finalists_are_told_in_a_line(tmp_path):
    """That of trial 12 tests 1 point better than it, within noise; that of trial 14 is 5 points worse."""
    folder = with_pairs(tmp_path)
    text = search_text(SearchResult("hand", folder.path, open_study(tmp_path, "hand").state, {}), "mlruns")
    assert [line for line in text.splitlines() if line.startswith("Static rules")] == [
        "Static rules that do as well as their finalists on test data: lamp for trial 12. "
        "Export one by --trial baseline:lamp@12."
    ]


def test_a_changed_study_is_refused_with_the_difference(main, finished):
    before = (finished.path / "study.json").read_bytes()
    words = ["search", "--workload", "./tiny.py:tiny"]
    one_line_error(main(*words, "--max-size", 0.3), 2, "max-size was 0.5, is 0.3", "--study")
    one_line_error(main(*words, "--sampler", "random", "--seed", 4), 2, "sampler was 'guided'", "seed was 0, is 4")
    one_line_error(main("search", "--study", "tiny", "--workload", "digits"), 2, "workload was", "'digits'")
    assert (finished.path / "study.json").read_bytes() == before


@pytest.mark.slow
def test_removals_before_masks_from_search_to_verify(main, without_mlflow, tmp_path):
    words = ("search", "--workload", "./tiny.py:tiny", "--root", tmp_path / "runs", "--max-size", 0.5, "--finalists", 0)
    words += ("--cost", "macs")
    ended = main(*words, "--granularity", "channel+vector,channel+2:4", "--bits", 32, "--trials", 4, "--json")
    assert ended.code == 0, ended.err
    row = json.loads(ended.out)["front"][0]
    assert row["granularity"] in ("channel+vector", "channel+2:4") and row["removal"]
    shown = main("front", "tiny", "--root", tmp_path / "runs", "--format", "csv").out
    assert json.loads(next(csv.DictReader(io.StringIO(shown)))["removal"]) == row["removal"]
    out = tmp_path / "out"
    assert main("export", "tiny", "--root", tmp_path / "runs", "--trial", row["trial"], "--out", out).code == 0
    policy = json.loads((out / "policy.json").read_text())
    assert (policy["sparsity"], policy["removal"]) == (row["sparsity"], row["removal"])
    assert policy["granularity"] == row["granularity"].removeprefix("channel+")
    assert (out / sparse_file(out)).stat().st_size <= 0.5 * json.loads((out / "manifest.json").read_text())[
        "dense_bytes"
    ]
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0
