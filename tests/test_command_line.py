"""The contract of the command line, on the installed command."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search.cli.commands.study import _search_text as search_text
from search.cli.mlflow_ui import serve_ui
from search.config import SearchConfig, make_config, read_study_file
from search.errors import EnvironmentProblem
from search.options import MASKS, study_file
from search.results.device_support import TARGETS
from search.results.view import open_study
from search.study.result import SearchResult
from search.workloads import get_workload
from spaces.granularity import GRANULARITIES, SEARCHED

HEAVY = {"torch", "numpy", "optuna", "mlflow", "pandas", "rich", "pydantic", "scipy", "sklearn", "matplotlib", "shtab"}
COMMANDS = (
    "search", "finals", "scan", "inspect", "front", "status", "report", "view", "export", "apply", "verify", "doctor",
    "completion",
)  # fmt: skip
CONTRACT_COLUMNS = {
    "trial", "accuracy", "final_accuracy", "test_accuracy", "test_sd", "size", "size_nonzero", "size_encoded", "macs",
    "latency", "granularity", "schedule", "exponent", "criterion", "sparsity",
}  # fmt: skip
LAYERS = {"conv0.weight", "conv1.weight", "classifier.weight"}
EXPORTED = ["model.safetensors", "model.sparse.safetensors", "policy.json", "sparsity.json", "structure.json"]


def sparse_file(folder: Path) -> str:
    """Of an export: of version 2 where its policy rounds weights."""
    return "model.prf" if rounds(folder) else "model.sparse.safetensors"


def rounds(folder: Path) -> bool:
    return "bits" in json.loads((folder / "policy.json").read_text())


def one_line_error(reply, code: int, *said: str) -> None:
    """An expected error: its exit code, one line on stderr that says all of `said`, nothing on stdout."""
    err, out = (reply.err, reply.out) if hasattr(reply, "err") else (reply.stderr, reply.stdout)
    found = reply.code if hasattr(reply, "code") else reply.returncode
    assert found == code, err
    lines = [line for line in err.splitlines() if line.startswith("prunefront: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    assert "Traceback" not in err and "unexpected" not in lines[0], err
    for words in said:
        assert words in lines[0], f"{words!r} not in {lines[0]!r}"
    assert out == ""


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(program, command):
    words = ["--help"] if command is None else [command, "--help"]
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['prunefront', *{words!r}]\n"
        "try: runpy.run_path(%r, run_name='__main__')\n"
        "except SystemExit as stop: print('CODE', stop.code)\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})" % program
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "CODE 0" in ended.stdout and "usage: prunefront" in ended.stdout, ended.stderr
    modules = set(ended.stdout.split("MODULES", 1)[1].split())
    assert "search" in modules and not modules & HEAVY


def test_help_lists_every_command(run):
    ended = run("--help")
    assert ended.returncode == 0
    listed = re.findall(r"^ {4}([a-z]+)\b", ended.stdout, flags=re.M)
    assert sorted(listed) == sorted(COMMANDS)


def test_version_is_the_installed_one(run):
    from importlib.metadata import version

    assert run("--version").stdout == f"prunefront {version('prunefront')}\n"


@pytest.mark.parametrize("name", ["../tiny", "/etc", "tiny/../tiny", "", "x" * 300, ".hidden"])
def test_a_study_name_is_no_path(main, finished, name):
    one_line_error(main("front", name), 2, repr(name)[:40])


def test_an_unreachable_limit_names_the_range_before_any_training(main, place):
    root = place / "unreachable"
    reply = main("search", "--root", root, "--workload", "./tiny.py:tiny", "--max-size", 0.01)
    one_line_error(reply, 2, "0.01", "cannot be reached", "--max-size")
    smallest = float(re.search(r"reachable is ([\d.]+) to 0\.", reply.err).group(1))
    needed = float(re.search(r"at least ([\d.]+)", reply.err).group(1))
    assert 0.01 < smallest <= needed < 1
    assert not (root / "cache").exists() and not (root / "tiny").exists()


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
def test_a_file_as_root_is_an_environment_problem(run, tmp_path):
    (tmp_path / "file").write_text("")
    one_line_error(run("search", "--root", tmp_path / "file", "--trials", 1), 3, "file", "--root")
    assert (tmp_path / "file").read_text() == ""


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


def test_help_prints_a_study_file_of_every_key_at_its_default(run, tmp_path):
    shown = run("search", "--help").stdout
    assert "".join(f"  {line}\n" for line in study_file().splitlines()) in shown
    file = tmp_path / "study.toml"
    file.write_text(study_file())
    given, plain = make_config(**read_study_file(file)), SearchConfig()
    assert given == plain
    file.write_text(re.sub(r"^# (\S+ =)", r"\1", study_file(), flags=re.M))
    options = read_study_file(file)
    assert options.keys() == SearchConfig.model_fields.keys()
    optional = {key for key, value in plain if value is None}
    for others in ({"weights", "min_accuracy"}, {"pretrained", "min_score"}):  # of each pair one is taken
        config = make_config(**{key: value for key, value in options.items() if key not in others})
        assert {key for key, value in config if value != getattr(plain, key)} == optional - others


def test_a_study_file_says_what_the_flags_do_not(main, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(f'root = "{tmp_path / "root"}"\nmax-size = 0.01\nworkload = "./tiny.py:tiny"\n')
    one_line_error(main("search", file), 2, "0.01", "cannot be reached")
    one_line_error(main("search", "--max-size", 0.02, file), 2, "0.02", "cannot be reached")


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


def test_front_json_has_the_contract_columns_and_honest_values(run, finished):
    rows = json.loads(run("front", "tiny", "--format", "json").stdout)
    assert rows and isinstance(rows, list)
    for row in rows:
        assert row.keys() >= CONTRACT_COLUMNS
        assert row["sparsity"].keys() <= LAYERS and all(0 <= s < 1 for s in row["sparsity"].values())
        assert row["size"] == row["size_encoded"] <= finished.limit and row["latency"] is None
        assert all(type(row[key]) is float for key in ("accuracy", "size", "size_nonzero", "macs"))
        assert type(row["trial"]) is int and "state" not in row
        journal = json.loads((finished.path / "journal" / f"trial-{row['trial']:05d}.json").read_text())
        assert row["accuracy"] == journal["result"]["accuracy"] and row["sparsity"] == journal["policy"]["sparsity"]
    measured = [row for row in rows if row["final_accuracy"] is not None]
    unpruned = [row for row in measured if not any(row["sparsity"].values())]  # dense at these bits has finals, too
    assert 1 <= len(measured) <= 2 + len(unpruned) and all(0 <= row["test_accuracy"] <= 1 for row in measured)


def test_front_csv_and_table_show_the_same_trials(main, finished):
    rows = json.loads(main("front", "tiny", "--format", "json").out)
    shown = list(csv.DictReader(io.StringIO(main("front", "tiny", "--format", "csv").out)))
    assert [int(row["trial"]) for row in shown] == [row["trial"] for row in rows]
    assert [json.loads(row["sparsity"]) for row in shown] == [row["sparsity"] for row in rows]
    first, _, table = main("front", "tiny").out.partition("\n\n")
    assert first == f"Dense accuracy: {finished.reply['dense_accuracy'] * 100:.2f} % on validation data"
    lines = [line for line in table.partition("\n\n")[0].splitlines() if line.strip()]
    assert [int(line.split()[0]) for line in lines[1:]] == [row["trial"] for row in rows]


def test_front_json_flag_wraps_the_rows_in_one_object(main, finished):
    wrapped = json.loads(main("front", "tiny", "--json").out)
    assert wrapped["study"] == "tiny"
    assert wrapped["front"] == json.loads(main("front", "tiny", "--format", "json").out)


def test_front_all_lists_every_trial_with_state_and_running_seconds(main, finished):
    rows = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    assert [row["trial"] for row in rows] == list(range(8))
    assert {row["state"] for row in rows} == {"complete"}
    assert rows[0].keys() >= {"state", "reason", "rung", "started", "finished"} | CONTRACT_COLUMNS
    for before, after in itertools.pairwise(rows):
        assert 0 <= before["started"] < before["finished"] <= after["started"]
    assert [row["reason"] for row in rows] == [None] * 8


def test_front_can_be_sliced_by_another_limit(main, finished):
    whole = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    sizes, chance = (
        sorted(row["size"] for row in whole),
        json.loads((finished.path / "study.json").read_text())["chance"],
    )
    for limit in (sizes[3], 1.0):
        within = [row for row in whole if row["size"] <= limit and row["accuracy"] > chance]
        expected = {
            row["trial"]
            for row in within
            if not any(
                other["accuracy"] >= row["accuracy"] and other["size"] <= row["size"] and other["macs"] <= row["macs"]
                and (other["accuracy"], other["size"], other["macs"]) != (row["accuracy"], row["size"], row["macs"])
                for other in within
            )
        }  # fmt: skip
        sliced = json.loads(main("front", "tiny", "--format", "json", "--max-size", limit).out)
        assert {row["trial"] for row in sliced} == expected
    nothing = main("front", "tiny", "--format", "json", "--max-size", sizes[0] / 2)
    assert (nothing.code, json.loads(nothing.out)) == (0, [])
    for wrong in ("0", "1.5", "nan", "-1"):
        one_line_error(main("front", "tiny", f"--max-size={wrong}"), 2, "max-size")


def test_status_counts_and_names_the_best(main, finished):
    reply = json.loads(main("status", "tiny", "--json").out)
    assert reply["trials"] == finished.reply["trials"] and reply["asked"] == 8
    assert reply["best"]["trial"] == finished.reply["best"] and reply["running"] is False
    text = main("status", "tiny").out
    assert "8 complete of 8 asked" in text and f"trial {finished.reply['best']}" in text and "Resume" not in text


def test_reading_a_study_changes_nothing_of_it(main, finished):
    def content():
        return {
            path: path.read_bytes() for path in finished.path.rglob("*") if path.is_file() and "lock" not in path.name
        }

    before = content()
    for words in (["front", "tiny"], ["status", "tiny"], ["front", "tiny", "--all"]):
        assert main(*words).code == 0
    assert content() == before


def test_a_report_is_a_page_beside_the_study_and_changes_nothing_of_it(main, finished, tmp_path):
    """Of a copy, whose report lies in its own folder; the lines on stdout are the words of the page."""

    def content():
        files = (path for path in (tmp_path / "tiny").rglob("*") if path.is_file() and path.parent.name != "report")
        return {path: path.read_bytes() for path in files}

    shutil.copytree(finished.path, tmp_path / "tiny")
    before = content()
    done = main("report", "tiny", "--root", tmp_path, "--json")
    assert done.code == 0 and content() == before
    reply = json.loads(done.out)
    assert reply["report"] == str(tmp_path / "tiny" / "report" / "report.html")
    names = sorted(path.name for path in (tmp_path / "tiny" / "report").iterdir())
    assert names == sorted(Path(path).name for path in (reply["report"], *reply["pictures"])) and len(names) == 6
    assert reply["words"]["recommendations"][0]["trial"] == finished.reply["best"]
    page = Path(reply["report"]).read_text()
    assert page.startswith("<!doctype html>")
    (tmp_path / "file").touch()
    one_line_error(main("report", "tiny", "--out", tmp_path / "file" / "below"), 2, "name a folder")


def test_time_left_includes_finals_and_is_never_nothing(finished):
    """Of 8 trials, 2 finalists and their baselines, of which some may be one policy; one of each has 3 runs."""
    lines = [line for line in finished.stderr.splitlines() if re.match(r"(trial|final run) \d+", line)]
    trials = [line for line in lines if line.startswith("trial") and "best so far" in line]
    finals = [line for line in lines if re.match(r"final run \d+/\d+ \([a-z0-9 ]+\): [\d.]+% on validation", line)]
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


def test_a_changed_study_is_refused_with_the_difference(main, finished):
    before = (finished.path / "study.json").read_bytes()
    words = ["search", "--workload", "./tiny.py:tiny"]
    one_line_error(main(*words, "--max-size", 0.3), 2, "max-size was 0.5, is 0.3", "--study")
    one_line_error(main(*words, "--sampler", "random", "--seed", 4), 2, "sampler was 'guided'", "seed was 0, is 4")
    one_line_error(main("search", "--study", "tiny", "--workload", "digits"), 2, "workload was", "'digits'")
    assert (finished.path / "study.json").read_bytes() == before


@pytest.mark.slow
def test_json_stdout_holds_nothing_a_workload_prints(run, tmp_path):
    ended = run("inspect", "--root", tmp_path, "--json", "./tiny.py:chatty")
    reply = json.loads(ended.stdout)
    assert reply["workload"] == "chatty" and {layer["name"] for layer in reply["layers"]} == LAYERS
    assert "hello from the factory" in ended.stderr and "hello from a child process" in ended.stderr


def test_json_stdout_holds_one_object_where_stderr_is_closed(program, tmp_path):
    words = [program, "front", "nothing", "--json", "--root", tmp_path]
    ended = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *words], stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2 and json.loads(ended.stdout)["exit_code"] == 2


@pytest.mark.parametrize("words", [["--help"], ["front", "tiny", "--all", "--format", "json"]])
def test_a_reader_that_leaves_early_gets_no_complaint(program, place, finished, words):
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([program, *words], cwd=place, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ended.stderr == "" and ended.returncode in (0, 141)


def test_debug_shows_the_traceback_and_keeps_the_exit_code(run, place):
    ended = run("front", "--debug", "nothing")
    assert ended.returncode == 2 and "Traceback" in ended.stderr and "UsageError" in ended.stderr


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


def test_help_names_every_granularity():
    assert set(MASKS.removeprefix("also ").split(", ")) | set(SEARCHED) == set(GRANULARITIES)


def test_scan_writes_profile_and_picture(main, finished, tmp_path):
    reply = main("scan", "--workload", "./tiny.py:tiny", "--out", tmp_path / "scan", "--json")
    assert reply.code == 0, reply.err
    data = json.loads(reply.out)
    stored = json.loads((tmp_path / "scan" / "profile.json").read_text())
    assert set(stored["points"]) == {"fine-grained", "channel"} and stored["points"] == data["points"]
    assert set(stored["points"]["fine-grained"]) == LAYERS and "classifier.weight" not in stored["points"]["channel"]
    assert set(stored["rounding"]) == LAYERS and stored["rounding"] == data["rounding"]
    assert {tuple(p["bits"] for p in points) for points in stored["rounding"].values()} == {(8, 6, 4, 3, 2)}
    assert (tmp_path / "scan" / "profile.png").read_bytes().startswith(b"\x89PNG")
    drawn = ["profile.png", "profile-layers.png", "profile-layers.json"]
    assert data["pictures"] == [str(tmp_path / "scan" / name) for name in drawn]
    layers = json.loads((tmp_path / "scan" / "profile-layers.json").read_text())["layers"]
    assert {layer["layer"]: layer["parameters"] for layer in layers}["conv1.weight"] == 16 * 8 * 9


def test_scan_of_a_deep_network_is_brief_and_draws_its_layers_when_asked(main, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("search.training.profile_cache.DEEP", 1)
    monkeypatch.setattr("search.cli.commands.network.DEEP", 1)
    words = ("scan", "--workload", "./tiny.py:tiny", "--json", "--granularity", "channel", "--out")
    reply = main(*words, tmp_path / "brief")
    data = json.loads(reply.out)
    assert data["brief"] is True and {len(points) for points in data["points"]["channel"].values()} == {4}
    assert data["pictures"] == [str(tmp_path / "brief" / name) for name in ("profile.png", "profile-layers.json")]
    assert "brief scan" in reply.err and "--whole" in reply.err and "--pictures" in reply.err
    assert (
        data["profile"].endswith("profile.json") and '"accuracy": null' in (tmp_path / "brief/profile.json").read_text()
    )
    drawn = json.loads(main(*words, tmp_path / "drawn", "--pictures").out)
    assert str(tmp_path / "drawn" / "profile-layers.png") in drawn["pictures"] and drawn["points"] == data["points"]
    reply = main(*words, tmp_path / "whole", "--whole")
    whole = json.loads(reply.out)
    assert "brief" not in whole and {len(points) for points in whole["points"]["channel"].values()} == {7}
    assert "brief scan" not in reply.err
    shown = main("scan", "--workload", "./tiny.py:tiny", "--granularity", "channel")
    assert shown.code == 0 and "brief" not in shown.err


def test_scan_of_bits(main, finished, tmp_path):
    words = ("scan", "--workload", "./tiny.py:tiny", "--granularity", "channel", "--bits")
    shown = main(*words, "6,3").out
    assert re.search(r"^rounding +6 bits +3 bits$", shown, re.M) and "pruned to a sparsity or rounded to bits" in shown
    shown = main(*words, "32", "--root", tmp_path)
    assert shown.code == 0 and "rounding" not in shown.out and "one layer pruned to a sparsity, " in shown.out
    for bad in ("8,1", "8,,4", "3.5", "33", "eight"):
        reply = main(*words, bad)
        assert reply.code == 2 and reply.err.startswith("prunefront: --bits must be one of 32, 16, 8,"), reply.err


def test_scan_at_sparsities_of_its_own_is_kept_apart(main, finished, tmp_path):
    shutil.copytree(finished.root / "cache", tmp_path / "cache")
    before = set((tmp_path / "cache").glob("profile-*.json"))
    words = ["scan", "--workload", "./tiny.py:tiny", "--root", tmp_path, "--bits", "8"]
    found = json.loads(main(*words, "--sparsities", "0.6,0.25", "--json").out)
    points = found["points"]["fine-grained"]["conv1.weight"]
    assert [round(point["sparsity"], 2) for point in points] == [0.25, 0.6]
    assert Path(found["profile"]) not in before and before <= set((tmp_path / "cache").glob("profile-*.json"))
    one_line_error(main(*words, "--sparsities", "0.5,1.5"), 2, "--sparsities", "1.5")


def test_a_named_schedule_has_its_exponent(main, tmp_path):
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.25}')
    words = ["apply", tmp_path / "dict.json", "--workload", "./tiny.py:tiny", "--out", tmp_path / "out"]
    reply = main(*words, "--schedule", "linear", "--exponent", "3")
    one_line_error(reply, 2, "--exponent", "linear", "leave it out")
    one_line_error(main(*words, "--schedule", "quadratic"), 2, "quadratic", "cubic", "linear")
    one_line_error(main("search", "--schedule", "linear"), 2, "exponent 1", "polynomial")


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


def test_apply_draws_stages_and_curves_that_equal_its_own_runs(main, tmp_path):
    file = tmp_path / "dict.json"
    file.write_text(json.dumps(dict.fromkeys(LAYERS, 0.75)))
    words = ["apply", file, "--workload", "./tiny.py:tiny"]
    drawn = [*words, "--schedule", "iterative", "--pictures", tmp_path / "drawn", "--curves", "0.75"]
    reply = main(*drawn, "--out", tmp_path / "rounds", "--json")
    assert reply.code == 0, reply.err
    data = json.loads(reply.out)
    names = ["weights.png", "weights.json", "curves.png", "curves.json", "policy.png"]
    assert data["pictures"] == [str(tmp_path / "drawn" / name) for name in names]
    stages = json.loads((tmp_path / "drawn" / "weights.json").read_text())
    assert stages["stages"] == ["dense", "pruned", "fine-tuned"]
    assert [stage["zeros"] for stage in stages["layers"]["conv1.weight"]] == [0, 864, 864]
    points = json.loads((tmp_path / "drawn" / "curves.json").read_text())["points"]
    accuracy = {point["method"]: point["accuracy"] for point in points}
    assert accuracy["iterative"] == data["accuracy"]
    alone = json.loads(main(*words, "--schedule", "one-shot", "--out", tmp_path / "at-once", "--json").out)
    assert accuracy["prune + fine-tune"] == alone["accuracy"]
    inside = [*words, "--out", tmp_path / "o", "--pictures", tmp_path / "o" / "p"]
    one_line_error(main(*inside), 2, "--pictures", "--out", "another folder")
    one_line_error(main(*words, "--out", tmp_path / "o", "--curves", "0.5"), 2, "--curves", "--pictures")
    one_line_error(main(*drawn[:-1], "0.5,0", "--out", tmp_path / "o"), 2, "--curves", "above 0")
    scratch = [*words, "--training", "scratch-e", "--pictures", tmp_path / "p", "--curves", "0.5"]
    one_line_error(main(*scratch, "--out", tmp_path / "o"), 2, "--curves", "scratch-e")
    file.write_text('{"conv1.weight": 0.0}')
    one_line_error(main(*drawn, "--out", tmp_path / "o"), 2, "--curves", "removes nothing")
    assert not (tmp_path / "o").exists()


def test_an_export_holds_every_file_with_its_hash(exported, finished):
    manifest = json.loads((exported / "manifest.json").read_text())
    files = sorted(sparse_file(exported) if "sparse." in name else name for name in EXPORTED)
    assert sorted(manifest["files"]) == files
    assert sorted(path.name for path in exported.iterdir()) == sorted([*files, "manifest.json"])
    for name, described in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert described == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    flat = json.loads((exported / "sparsity.json").read_text())
    policy = json.loads((exported / "policy.json").read_text())
    assert flat.keys() == LAYERS
    assert flat == {name: policy["sparsity"].get(name, 0.0) for name in LAYERS}
    size = (exported / sparse_file(exported)).stat().st_size
    assert manifest["size_encoded"] == size / manifest["dense_bytes"] <= finished.limit


@pytest.mark.slow
def test_verify_passes_in_a_fresh_process(run, exported):
    ended = run("verify", exported, "--workload", "./tiny.py:tiny", "--json")
    reply = json.loads(ended.stdout)
    assert ended.returncode == 0 and reply["verified"] is True
    assert all(check["passed"] for check in reply["checks"]) and len(reply["checks"]) == 5 + 7 + rounds(exported)


@pytest.mark.parametrize("name", EXPORTED)
def test_verify_sees_one_flipped_byte(main, exported, tmp_path, name):
    copy = shutil.copytree(exported, tmp_path / "copy")
    name = sparse_file(copy) if "sparse." in name else name
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    reply = main("verify", copy, "--workload", "./tiny.py:tiny", "--json")
    data = json.loads(reply.out)
    assert reply.code == 1 and data["verified"] is False
    assert [check["name"] for check in data["checks"] if not check["passed"]] == [f"hash of {name}"]


@pytest.mark.parametrize("key", ["accuracy", "size_encoded", "limit", "outputs", "architecture"])
def test_verify_sees_a_manifest_that_promises_something_else(main, exported, tmp_path, key):
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest[key] = {
        "accuracy": manifest["accuracy"] - 0.02,
        "size_encoded": manifest["size_encoded"] * 0.999,
        "limit": manifest["size_encoded"] * 0.99,
        "outputs": [[value * 1.01 for value in row] for row in manifest["outputs"]],
        "architecture": "0" * 16,
    }[key]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    reply = main("verify", copy, "--workload", "./tiny.py:tiny", "--json")
    assert reply.code == 1, reply.err
    assert sum(not check["passed"] for check in json.loads(reply.out)["checks"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "files": {}}', '{"version": 1, "files": []}'])
def test_a_damaged_manifest_is_refused(main, exported, tmp_path, text):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "manifest.json").write_text(text)
    one_line_error(main("verify", copy, "--workload", "./tiny.py:tiny"), 4, "manifest.json")


def test_a_missing_file_is_not_verified(main, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "structure.json").unlink()
    assert main("verify", copy, "--workload", "./tiny.py:tiny").code == 1


def test_verify_runs_no_code_an_export_names(main, exported, tmp_path):
    canary = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\ndef factory(): pass\n")
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    for spec in (f"{tmp_path / 'evil.py'}:factory", "os:getcwd", None, 5):
        manifest["workload"]["workload"] = spec
        (copy / "manifest.json").write_text(json.dumps(manifest))
        one_line_error(main("verify", copy), 2, "--workload")
    assert not canary.exists()


def test_export_leaves_foreign_files_alone(main, finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    one_line_error(main("export", "tiny", "--out", tmp_path), 2, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    one_line_error(main("export", "tiny", "--out", tmp_path / "thesis.tex"), 2, "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_exporting_again_replaces_an_earlier_export(main, finished, tmp_path):
    out = tmp_path / "out"
    assert main("export", "tiny", "--out", out, "--trial", "smallest").code == 0
    first = json.loads((out / "manifest.json").read_text())["origin"]["trial"]
    rows = json.loads(main("front", "tiny", "--format", "json").out)
    assert first == min(rows, key=lambda row: row["size"])["trial"]
    (out / "thesis.txt").write_text("mine")
    refused = main("export", "tiny", "--out", out, "--trial", "knee")
    assert refused.code == 2 and "thesis.txt" in refused.err
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    assert main("export", "tiny", "--out", out, "--trial", "knee").code == 0
    assert json.loads((out / "manifest.json").read_text())["origin"]["trial"] != first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_exporting_a_trial_without_weights_repeats_its_fine_tune(main, finished, tmp_path):
    kept = {int(path.stem.removeprefix("trial-")) for path in (finished.path / "checkpoints").glob("trial-*")}
    front = {row["trial"] for row in finished.reply["front"]}
    assert front <= kept
    number = min(set(range(8)) - kept)
    reply = main("export", "tiny", "--trial", number, "--out", tmp_path / "out", "--json")
    assert reply.code == 0 and f"trial {number} kept no weights" in reply.err
    journal = json.loads((finished.path / "journal" / f"trial-{number:05d}.json").read_text())
    assert json.loads(reply.out)["accuracy"] == journal["result"]["accuracy"]


def test_apply_says_what_did_not_go_as_asked_and_refuses_what_nothing_goes_of(main, tmp_path):
    """Of a removal and of the masks after it each by itself; 12 of 16 channels stay where 10 are no multiple of 4."""
    file, words = tmp_path / "policy.json", ["--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    both = {"version": 1, "sparsity": {"conv1.weight": 0.25}, "removal": {"conv1.weight": 0.4}}
    file.write_text(json.dumps(both))
    exact = main("apply", file, *words, "--out", tmp_path / "exact")
    assert exact.code == 0 and " asked, " not in exact.err, exact.err
    assert re.match(r"Dense accuracy: \d\d\.\d\d % on validation data; fine-tuned for 1 epoch\n", exact.out)
    rounded = main("apply", file, *words, "--round-to", 4, "--out", tmp_path / "rounded")
    assert rounded.code == 0 and rounded.err.count(" asked, ") == 1, rounded.err
    assert "conv1.weight: 40.0 % of its channels asked, 25.0 % removed" in rounded.err
    file.write_text(json.dumps({**both, "sparsity": {}}))
    refused = main("apply", file, *words, "--round-to", 16, "--out", tmp_path / "never")
    one_line_error(refused, 2, "policy.json: nothing to remove", "its 16 units", "rounded to")
    refused = main("apply", file, *words, "--pictures", file, "--out", tmp_path / "never")
    one_line_error(refused, 2, "--pictures", "policy.json", "is a file")
    one_line_error(main("apply", file, *words, "--out", file / "never"), 2, "--out", "below", "which is a file")
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a folder")
def test_a_folder_that_cannot_be_written_costs_no_fine_tune(main, tmp_path):
    file, words = tmp_path / "sparsity.json", ["--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    file.write_text('{"conv1.weight": 0.25}')
    refused = main("apply", file, *words, "--out", "/proc/never/here")
    one_line_error(refused, 3, "--out", "/proc/never/here", "name another folder")
    refused = main("apply", file, *words, "--out", tmp_path / "never", "--pictures", "/proc/never")
    one_line_error(refused, 3, "--pictures", "/proc/never", "name another folder")
    assert not (tmp_path / "never").exists()
    assert not any((tmp_path / "root").rglob("*.safetensors"))


def test_a_mount_point_is_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.cli.commands import policy

    monkeypatch.setattr(policy, "dense_model", lambda *_: pytest.fail("training was begun"))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "sparsity.json").write_text('{"conv1.weight": 0.25}')
    words = ["apply", tmp_path / "sparsity.json", "--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    for name in ("disk", "link"):
        out = str(tmp_path / name)
        one_line_error(main(*words, "--out", out), 3, repr(out), "mount point", repr(f"{out}/export"))
    assert main("export", "tiny", "--out", tmp_path / "disk" / "export").code == 0


@pytest.mark.slow
def test_a_network_without_onnx_is_exported_without_it(main, tmp_path):
    """Code 1 and one line; all that was asked for besides is there, and what is there is right."""
    (tmp_path / "sparsity.json").write_text('{"conv1.weight": 0.25}')
    out, own = tmp_path / "out", ["--workload", "./tiny.py:without_onnx", "--root", tmp_path / "root"]
    asked = ["--onnx", "--onnx-int8", "--torch-prune", "--pictures", tmp_path / "pictures"]
    reply = main("apply", tmp_path / "sparsity.json", *own, "--out", out, *asked)
    one_line_error(
        reply,
        1,
        "is complete but for model.onnx",
        repr(str(out)),
        "is complete but for model.onnx",
        "No ONNX function",
        "bessel_i1e",
        "and model.int8.onnx: the network cannot be written as ONNX",
    )
    files = [*EXPORTED, "manifest.json", "model.torch-prune.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert any((tmp_path / "pictures").iterdir())
    verified = main("verify", out, *own)
    assert verified.code == 0 and "torch-prune file" in verified.out, verified.out


@pytest.mark.slow
def test_an_export_of_8_bits_says_its_accuracy(main, finished, tmp_path):
    out = tmp_path / "out"
    reply = main("export", "tiny", "--onnx-int8", "--out", out)
    said = json.loads((out / "manifest.json").read_text())
    change = abs(said["int8"]["accuracy"] - said["accuracy"]) * 100
    assert reply.code == 0 and "model.int8.onnx" in said["files"] and "model.onnx" not in said["files"]
    assert f"In 8 bits by ONNX Runtime: accuracy {said['int8']['accuracy'] * 100:.2f} %" in reply.out
    assert (f"{change:.2f} points" if change else "the same") in reply.out
    assert "outputs differ by up to" in reply.out
    verified = main("verify", out, "--workload", "./tiny.py:tiny")
    assert verified.code == 0 and "onnx of 8 bits" in verified.out


@pytest.mark.slow
def test_an_onnx_file_that_computes_something_else_is_left_out(main, finished, tmp_path, monkeypatch):
    from search.export import onnx_file

    words, out = ["export", "tiny", "--onnx", "--out", tmp_path / "out"], tmp_path / "out"
    assert main(*words).code == 0
    assert "model.onnx" in json.loads((out / "manifest.json").read_text())["files"]
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    reply = main(*words, "--json")
    said = json.loads(reply.out)
    assert (reply.code, said["exit_code"]) == (1, 1)
    assert "is complete but for model.onnx" in said["error"] and "differ from PyTorch's" in said["error"]
    assert not (out / "model.onnx").exists()
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0


@pytest.mark.parametrize("choice", ["baseline", "best"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "repeated"])
def test_what_has_finals_is_exported_as_its_median_run(main, finished, tmp_path, kept, choice):
    """Kept or repeated at full length, even where a trial's own weights are still there."""
    for part in ("tiny", "cache"):
        shutil.copytree(finished.root / part, tmp_path / "root" / part)
    if not kept:
        for path in (tmp_path / "root" / "tiny" / "checkpoints").glob("final-*"):
            path.unlink()
    out, asked = tmp_path / "out", choice
    if choice == "baseline":
        (best,) = (row["digest"] for row in finished.reply["front"] if row["trial"] == finished.reply["best"])
        matched = json.loads((finished.path / "comparison.json").read_text())["matched"][best]
        asked = f"baseline:{matched['rule']}"
    reply = main("export", "tiny", "--root", tmp_path / "root", "--trial", asked, "--out", out, "--json")
    assert reply.code == 0, reply.err
    manifest = json.loads(reply.out)
    if choice == "best":
        (digest,) = (row["digest"] for row in finished.reply["front"] if row["trial"] == finished.reply["best"])
        name, origin = f"trial {finished.reply['best']}", {"trial": finished.reply["best"]}
    else:
        digest, name, origin = matched["digest"], f"baseline {matched['rule']}", {"baseline": matched["rule"]}
    assert (f"{name} kept no weights" in reply.err) is not kept
    assert manifest["origin"] == {"study": "tiny", **origin, "seed": manifest["origin"]["seed"]}
    runs = [json.loads(p.read_text()) for p in (finished.path / "journal").glob(f"final-{digest}-*.json")]
    median = sorted(runs, key=lambda run: (run["result"]["accuracy"], run["seed"]))[1]
    assert (manifest["accuracy"], manifest["origin"]["seed"]) == (median["result"]["accuracy"], median["seed"])
    assert manifest["test_accuracy"] == (median["test_accuracy"] if kept else None)
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0


def test_an_export_is_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.export import of_study

    monkeypatch.setattr(of_study, "export_of_trial", lambda *_: pytest.fail("the export was begun"))
    (tmp_path / "thesis.tex").write_text("years of work")
    one_line_error(main("export", "tiny", "--out", tmp_path), 2, "thesis.tex")
    one_line_error(main("export", "tiny", "--out", tmp_path / "x", "--criterion", "taylor"), 2, "'magnitude-l2'")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    for asked in ("--onnx", "--onnx-int8"):
        one_line_error(main("export", "tiny", "--out", tmp_path / "x", asked), 3, "'onnx'", "prunefront[onnx]")


def trial_of(main, removes_channels: bool) -> int:
    rows = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    pruned = [row for row in rows if row["state"] == "complete" and any(row["sparsity"].values())]
    return next(row["trial"] for row in pruned if (row["macs"] < 1) == removes_channels)


def test_plain_pytorch_restores_the_masks_of_an_export(main, finished, place, tmp_path):
    from safetensors.torch import load_file
    from torch.nn.utils import prune

    out, number = tmp_path / "out", trial_of(main, removes_channels=False)
    reply = main("export", "tiny", "--trial", number, "--out", out, "--torch-prune", "--json")
    assert reply.code == 0, reply.err
    assert "model.torch-prune.safetensors" in json.loads(reply.out)["files"]

    spec = importlib.util.spec_from_file_location("tiny_of_the_user", place / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    plain, restored = tiny.Tiny().eval(), tiny.Tiny().eval()
    state = load_file(out / "model.torch-prune.safetensors")
    for name in state:
        if name.endswith("_mask"):
            module, _, parameter = name.removesuffix("_mask").rpartition(".")
            prune.identity(restored.get_submodule(module), parameter)
    restored.load_state_dict(state, strict=True)
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(restored(images), plain(images))

    asked = json.loads((out / "sparsity.json").read_text())
    masks = {name.removesuffix("_mask"): t for name, t in state.items() if name.endswith("_mask")}
    assert masks.keys() == {name for name, share in asked.items() if share > 0}
    for name, mask in masks.items():
        removed, share = int((mask == 0).sum()), min(int(asked[name] * mask.numel() + 0.5), mask.numel() - 1)
        assert removed >= share if rounds(out) else removed == share  # rounding makes zeros of its own
    optimizer = torch.optim.SGD(restored.parameters(), lr=0.1)
    restored(images).sum().backward()
    optimizer.step()
    restored(images)
    assert all(not restored.get_submodule(n.removesuffix(".weight")).weight[m == 0].any() for n, m in masks.items())


def test_verify_checks_the_masks_of_an_export(main, finished, tmp_path):
    from safetensors.torch import load_file, save_file

    out, number = tmp_path / "out", trial_of(main, removes_channels=False)
    assert main("export", "tiny", "--trial", number, "--out", out, "--torch-prune").code == 0
    reply = json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)
    assert reply["verified"] and len(reply["checks"]) == 6 + 8 + rounds(out)
    file = out / "model.torch-prune.safetensors"
    state = load_file(file)
    kept = state["conv1.weight_mask"].flatten().nonzero()[0]
    state["conv1.weight_mask"].view(-1)[kept] = 0
    save_file(state, file)
    failed = [c["name"] for c in json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)["checks"]
              if not c["passed"]]  # fmt: skip
    assert failed == ["hash of model.torch-prune.safetensors"]
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"][file.name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    failed = [c["name"] for c in json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)["checks"]
              if not c["passed"]]  # fmt: skip
    assert failed == ["torch-prune file"]


def test_masks_of_removed_channels_are_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.export import of_study

    out, number = tmp_path / "out", trial_of(main, removes_channels=True)
    monkeypatch.setattr(of_study, "export_of_trial", lambda *_: pytest.fail("the export was begun"))
    one_line_error(main("export", "tiny", "--trial", number, "--out", out, "--torch-prune"), 2, "--torch-prune", "conv")
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.25}')
    words = ["--workload", "./absent.py:tiny", "--out", out, "--granularity", "channel", "--torch-prune"]
    one_line_error(main("apply", tmp_path / "dict.json", *words), 2, "--torch-prune", "0.25", "'conv1.weight'")
    assert not out.exists()


def test_weights_pruned_by_pytorch_are_said_to_be(main, place, tmp_path):
    from torch import nn
    from torch.nn.utils import prune

    model = nn.ModuleDict({"conv0": nn.Conv2d(1, 8, 3, bias=False), "bn0": nn.BatchNorm2d(8),
                           "conv1": nn.Conv2d(8, 16, 3, bias=False), "bn1": nn.BatchNorm2d(16),
                           "classifier": nn.Linear(16, 10)})  # fmt: skip
    prune.ln_structured(model["conv1"], "weight", amount=4, n=2, dim=0)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--weights", tmp_path / "pruned.pt", "--out", tmp_path / "out"]
    reply = main("apply", tmp_path / "dict.json", *words, "--torch-prune", "--json")
    assert reply.code == 0, reply.err
    said = [line for line in reply.err.splitlines() if "torch.nn.utils.prune" in line]
    assert len(said) == 1 and "pruned.pt" in said[0] and "prune: 1," in said[0] and "25.0 %" in said[0]
    assert json.loads(reply.out)["size_nonzero"] == pytest.approx(1 - 576 / (72 + 1152 + 170 + 48))
    del (state := model.state_dict())["conv1.weight_mask"]
    torch.save(state, tmp_path / "pruned.pt")
    shutil.rmtree(tmp_path / "out")
    one_line_error(main("apply", tmp_path / "dict.json", *words), 2, "conv1.weight_orig", "conv1.weight_mask")


@pytest.mark.parametrize("trial", ["worst", "99", "-1", "1.5"])
def test_a_wrong_trial_names_what_there_is(main, finished, tmp_path, trial):
    one_line_error(main("export", "tiny", "--out", tmp_path / "out", f"--trial={trial}"), 2, trial)


@pytest.mark.parametrize("source", ["sparsity.json", "policy.json"])
def test_apply_prunes_by_an_exported_dict(main, exported, place, tmp_path, source):
    asked = json.loads((exported / "sparsity.json").read_text())
    out = tmp_path / "applied"
    bits = ["--bits", 4] if source == "sparsity.json" else []  # a dict has none, and this one may remove nothing
    reply = main("apply", exported / source, "--workload", "./tiny.py:tiny", "--out", out, "--json", *bits)
    assert reply.code == 0, reply.err
    told = json.loads(reply.out)
    study = json.loads((place / "mlruns" / "tiny" / "study.json").read_text())
    assert (told["dense_accuracy"], told["epochs"]) == (study["dense_accuracy"], 1.0) and "near chance" not in reply.err
    assert json.loads((out / "sparsity.json").read_text()) == asked
    policy = json.loads((out / "policy.json").read_text())
    if source == "policy.json":
        assert policy == json.loads((exported / "policy.json").read_text())
    else:
        assert policy["granularity"] == "fine-grained" and policy["schedule"]["kind"] == "polynomial"
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0


def test_apply_rounds_to_bits(main, place, tmp_path):
    """One number completes a bare dict; a policy has its own, for layers that nothing is removed from too."""
    file, words = tmp_path / "d.json", ["--workload", "./tiny.py:tiny", "--out"]
    file.write_text('{"conv1.weight": 0.5}')
    reply = main("apply", file, *words, tmp_path / "out", "--bits", 4)
    assert reply.code == 0 and " %, 4 bits, MACs" in reply.out and " asked, " not in reply.err, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert policy["bits"] == 4 and (tmp_path / "out" / "model.prf").is_file()
    assert main("verify", tmp_path / "out", *words[:2]).code == 0
    file.write_text(json.dumps({**policy, "sparsity": {}, "bits": {"conv1.weight": 2}}))
    reply = main("apply", file, *words, tmp_path / "bits-alone", "--json")
    assert reply.code == 0 and json.loads(reply.out)["size_encoded"] < 0.6, reply.err
    one_line_error(main("apply", file, *words, tmp_path / "no", "--bits", 8), 2, "complete policy", "--bits")
    for bits, said in (
        ("8", "got '8'; nearest valid: 8"),
        ({"conv9.weight": 4}, "'conv1.weight'"),
        (33, "valid: 32"),
        (3.5, "got 3.5"),
    ):
        file.write_text(json.dumps({**policy, "bits": bits}))
        one_line_error(main("apply", file, *words, tmp_path / "no"), 2, "d.json", said)
    file.write_text('{"conv1.weight": 0.5}')
    for bits in ("1", "33", "3.5", "8,6"):
        one_line_error(main("apply", file, *words, tmp_path / "no", "--bits", bits), 2, "bits must be one of", bits)
    given = main("apply", file, *words, tmp_path / "no", "--weights", tmp_path / "out" / "model.prf")
    one_line_error(given, 4, "model.prf are a sparse file", "model.safetensors")
    assert not (tmp_path / "no").exists()


def test_apply_takes_rounds_and_regrowth(main, place, tmp_path):
    file = tmp_path / "sparsity.json"
    file.write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--out", tmp_path / "out", "--granularity", "2:4"]
    reply = main("apply", file, *words, "--schedule", "iterative", "--rounds", "2", "--regrow", "--json")
    assert reply.code == 0, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert policy["schedule"] == {"kind": "iterative", "exponent": 3.0, "ramp": 0.6, "rounds": 2, "regrow": True}
    assert main("verify", tmp_path / "out", "--workload", "./tiny.py:tiny").code == 0
    words[3] = tmp_path / "other"
    one_line_error(main("apply", file, *words, "--start", "0.7"), 2, "0 <= start < ramp", "0.7")
    one_line_error(main("apply", file, *words, "--rounds", "2"), 2, "--rounds has no effect", "polynomial")
    one_line_error(main("apply", file, *words, "--training", "scratch-e", "--ramp", "0.5"), 2, "--ramp", "scratch-e")
    one_line_error(main("apply", file, *words, "--training", "scratch"), 2, "unknown training 'scratch'", "scratch-b")
    one_line_error(main("apply", file, *words, "--criterion", "foo:bar"), 2, "'foo:bar' is not registered here")


def test_apply_takes_no_workload_for_granted(main, exported, tmp_path):
    """A built-in one beside the file is taken and said; its layers are then looked for."""
    (tmp_path / "bare.json").write_text('{"conv1.weight": 0.25}')
    words = ["--out", tmp_path / "out", "--root", tmp_path / "root"]
    one_line_error(main("apply", tmp_path / "bare.json", *words), 2, "--workload", "bare.json", "./file.py:factory")
    one_line_error(main("apply", exported / "policy.json", *words), 2, "--workload", "is not run")
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["workload"] = {"workload": "digits", "data": None, "width": 0.0625}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    reply = main("apply", copy / "sparsity.json", *words)
    one_line_error(reply, 2, "unknown layer", "backbone.conv")
    assert f"workload digits, as {copy / 'manifest.json'} names it" in reply.err
    assert not (tmp_path / "out").exists() and not list((tmp_path / "root").rglob("*.safetensors"))


def test_flags_complete_a_bare_dict_and_cannot_change_a_policy(main, exported, tmp_path):
    file = tmp_path / "dict.json"
    file.write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--out", tmp_path / "out", "--granularity", "channel"]
    reply = main("apply", file, *words, "--criterion", "magnitude-l1", "--schedule", "one-shot", "--json")
    assert reply.code == 0, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert (policy["granularity"], policy["criterion"]) == ("channel", "magnitude-l1")
    assert policy["schedule"]["kind"] == "one-shot"
    kept = json.loads(reply.out)
    assert kept["macs"] == pytest.approx((72 * 64 + 1152 * 8 + 80) / (72 * 64 + 1152 * 16 + 160))
    one_line_error(main("apply", exported / "policy.json", *words), 2, "granularity")


@pytest.mark.slow
def test_view_answers_on_this_machine_only(program, place, finished):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "view", "--port", str(port), "--json"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        reply = json.loads(server.stdout.readline())
        assert reply["url"] == f"http://127.0.0.1:{port}" and "127.0.0.1" in reply["command"]
        assert _answers(reply["url"], server) == 200
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        hosts = {row.split()[1].split(":")[0] for row in listening if int(row.split()[1].split(":")[1], 16) == port}
        assert hosts == {"0100007F"}
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
        assert server.returncode == 130 and out == ""
        assert err.splitlines()[-1] == "prunefront: interrupted" and "Traceback" not in err
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        assert not [
            row for row in listening if int(row.split()[1].split(":")[1], 16) == port and row.split()[3] == "0A"
        ]
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(20)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_view_says_one_line_and_leaves_no_server(main, monkeypatch, tmp_path, number, code, word):
    """By a server that is up at once in MLflow's place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr("search.cli.commands.study.open_store", lambda *_: None)
    monkeypatch.setattr("search.cli.mlflow_ui.ui_command", lambda *_: ["http.server", str(port), "--bind", "127.0.0.1"])

    def stop_once_it_answers() -> None:
        while not _is_open(port):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_once_it_answers, daemon=True).start()
    reply = main("view", "--root", tmp_path, "--port", port, "--json")
    assert reply.code == code and json.loads(reply.out)["url"].endswith(str(port))
    assert reply.err.splitlines()[-1] == f"prunefront: {word}" and "Traceback" not in reply.err
    assert not _is_open(port)


def test_a_killed_view_leaves_no_server(tmp_path):
    """Neither the server nor what that started, which ignores being asked to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "stubborn.py").write_text(
        "import os, runpy, signal, sys\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    sys.argv = ['http.server', sys.argv[1], '--bind', '127.0.0.1']\n"
        "    runpy.run_module('http.server', run_name='__main__')\n"
        "signal.pause()\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nimport search.cli.mlflow_ui as ui\nsys.path.append('.')\n"
        "ui.ui_command = lambda *_: ['stubborn', sys.argv[1]]\nui.serve_ui(Path('.'), 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(tmp_path)])}
    viewer = subprocess.Popen([sys.executable, "-c", code, str(port)], cwd=tmp_path, env=environment)
    try:
        assert _becomes(port, True)
    finally:
        viewer.kill()
        viewer.wait()
    assert _becomes(port, False)


def _becomes(port: int, is_open: bool) -> bool:
    for _ in range(600):
        if _is_open(port) == is_open:
            return True
        time.sleep(0.1)
    return False


def _is_open(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_that_ends_by_itself_is_an_environment_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("search.cli.mlflow_ui.ui_command", lambda *_: ["http.server", "--no-such-option"])
    with pytest.raises(EnvironmentProblem, match="ended with code 2"):
        serve_ui(tmp_path, 5000)


def _answers(url: str, server: subprocess.Popen) -> int | None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return page.status
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    return None


def test_a_port_in_use_is_an_environment_problem(main, finished):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one_line_error(main("view", "--port", taken.getsockname()[1]), 3, "--port")


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


def test_scan_of_a_combined_word_is_of_its_parts(main, finished, tmp_path):
    words = ("scan", "--workload", "./tiny.py:tiny", "--out", tmp_path / "scan", "--granularity", "channel+kernel")
    assert main(*words).code == 0
    assert set(json.loads((tmp_path / "scan" / "profile.json").read_text())["points"]) == {"channel", "kernel"}
