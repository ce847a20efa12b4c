"""What `search --dry-run` says is what the search then does, and it leaves no trace."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from search import Recipe, SearchConfig, get_workload
from search.cli.preview_text import _closing_line
from search.study.foretold import StepTimes, foretold
from search.training.evaluate import PreparedModel
from search.training.examples import step_count
from search.workloads.digits import digits


def content(folder: Path) -> dict[str, str]:
    return {str(p): sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def previewed(main, *words: object) -> dict:
    done = main("search", "--dry-run", "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_it_foretells_the_first_trials_of_a_study(main, finished):
    before = content(finished.root)
    found = previewed(
        main, "--workload", "./tiny.py:tiny", "--trials", 8, "--max-size", 0.5, "--finalists", 2, "--study", "another"
    )
    assert content(finished.root) == before and not (finished.root / "another").exists()
    assert found["study"] == "another" and found["is_new"] and found["has_scan"] and found["first_trials_exact"]
    assert found["trials"] == {"asked": 8, "finished": 0}
    assert found["dense_accuracy"] == finished.reply["dense_accuracy"]
    rows = json.loads(main("front", finished.name, "--all", "--json").out)["front"][:4]
    told = [(one["allocator"], one["granularity"], one["bits"]) for one in found["first_trials"]]
    assert told == [(row["origin"], row["granularity"], row["bits"]) for row in rows]
    for one, row in zip(found["first_trials"], rows, strict=True):
        assert row["size"] <= one["size"] <= row["size"] * 1.1
    assert found["finals"] == {"finalists": 2, "repeats": 3, "baselines": ["uniform", "global", "lamp"]}
    assert [one["layer"] for one in found["layers"]] == ["conv0.weight", "conv1.weight", "classifier.weight"]
    assert [bool(one["channels_stay"]) for one in found["layers"]] == [False, False, True]
    assert found["seconds"] > 0


def test_a_new_root_is_not_even_made(main, place, tmp_path):
    root = tmp_path / "new" / "root"
    found = previewed(main, "--root", root, "--workload", "./tiny.py:tiny", "--trials", 12, "--granularity", "channel")
    assert list(tmp_path.iterdir()) == []
    assert found["dense_accuracy"] is None and found["has_scan"] is False and not found["first_trials_exact"]
    assert len(found["first_trials"]) == 6 and {one["granularity"] for one in found["first_trials"]} == {"channel"}
    assert all(one["size"] <= 0.25 for one in found["first_trials"])
    low, high = found["searched"]
    assert found["reachable"][0] <= low < high <= found["reachable"][1] < 0.25


def test_trials_take_no_longer_than_their_time_limit(monkeypatch):
    """At half a second a step; the dense training comes on top, and there are no finals."""
    monkeypatch.setattr("search.study.foretold.times_now", lambda *_: StepTimes(0.5, 0.5))
    recipe = Recipe(batch=20, dense_epochs=1, trial_epochs=1, final_epochs=1)
    task = get_workload("digits", factory=lambda: replace(digits(), recipe=recipe))
    per_epoch = step_count(task, 1)
    for timeout, trials in ((None, 6 * per_epoch * 0.5), (10**6, 6 * per_epoch * 0.5), (4, 4.0)):
        config = SearchConfig(trials=6, finalists=0, timeout=timeout)
        found = foretold(config, SimpleNamespace(workload=task), None, has_dense=False, has_scan=None)
        assert found.seconds == pytest.approx(trials + per_epoch * 0.5)
        assert ("for 4 s, as --timeout says" in found.basis) == (timeout == 4)


def test_fine_tunes_count_with_their_scoring_and_the_scan_with_its_passes(monkeypatch):
    """Two trials, nine short runs of static rules (three of them at the limit, at 8 bits), four finals of twice the
    length, and a scan of 9 layers.
    """
    monkeypatch.setattr("search.study.foretold.times_now", lambda *_: StepTimes(0.5, 0.25, 4.0))
    recipe = Recipe(batch=20, dense_epochs=3, trial_epochs=1, final_epochs=2)
    task = get_workload("digits", factory=lambda: replace(digits(), recipe=recipe))
    subject, space = PreparedModel.of(task, task.build_model()), SimpleNamespace(usable=("fine-grained",), bits=(8, 4))
    config = SearchConfig(trials=2, finalists=2, final_repeats=1, workers=2)
    per_epoch, images = step_count(task, 1), task.examples("calibration").count
    trial, final = per_epoch * 0.25 + 4, 2 * per_epoch * 0.25 + 4
    expected = 3 * per_epoch * 0.5 + (11 * trial + 4 * final) / 2
    assert foretold(config, subject, space, False, True).seconds == pytest.approx(expected)
    scan = 9 * (7 + 2) * images / 20 * 0.5 / 2
    found = foretold(config, subject, space, False, False)
    assert found.seconds == pytest.approx(expected + scan)
    assert "of 500 ms, in fine-tunes of 250 ms, and 4.0 s to score and encode each" in found.basis


def test_no_more_finals_are_counted_than_there_are_trials(monkeypatch):
    monkeypatch.setattr("search.study.foretold.times_now", lambda *_: StepTimes(0.5, 0.5))
    task, common = get_workload("digits"), {"final_repeats": 1, "granularity": ("channel",), "workers": 1}
    few, one = (
        foretold(SearchConfig(trials=1, finalists=n, **common), SimpleNamespace(workload=task), None, True, None)
        for n in (5, 1)
    )
    assert few.seconds == one.seconds and few.basis == one.basis


def test_long_steps_are_told_in_seconds_and_minutes():
    assert "of 999 ms, in fine-tunes of 1.2 s, and 2 min 05 s to" in str(StepTimes(0.9994, 1.234, 125.2))


def test_its_text_fits_a_terminal(main, finished):
    done = main("search", "--dry-run", "--study", finished.name, "--trials", 30)
    assert done.code == 0 and max(len(line) for line in done.out.splitlines() if not line.startswith("Finals: ")) <= 80
    assert "8 of 30 trials done" in done.out and "limit 50.00 %" in done.out and "uniform, global, lamp" in done.out


@pytest.mark.parametrize(
    ("options", "has_table", "said"),
    [
        ({}, True, "up to 3 finalists, each beside the best of lamp at its size; 3 runs of the best and of its "
         "baseline, fewer of others; then they are timed side by side, for up to 60 s"),
        ({"finalists": 1, "final_repeats": 1}, None, "up to 1 finalist, each beside the best of lamp at its size; "
         "1 run each"),
        ({"final_repeats": 1, "comparison": "full"}, None, "up to 3 finalists and the baselines lamp, 1 run each"),
        ({"finalists": 0}, True, "none"),
    ],
)  # fmt: skip
def test_one_final_is_no_finals(options, has_table, said):
    found = SimpleNamespace(config=SearchConfig(**options), baselines=("lamp",), has_latency_table=has_table)
    assert _closing_line(found) == f"Finals: {said}"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-size", 0.001, "--study", "x"], 2, "cannot be reached"),
        (["--max-size", 0.4], 2, "max-size was 0.5, is 0.4"),
        (["--weights", "no.pt", "--study", "x"], 3, "no.pt"),
        (["--root", "tiny.py"], 3, "cannot write to root"),
    ],
)
def test_it_refuses_what_a_search_refuses(main, finished, words, code, said):
    results = [main("search", *dry, "--workload", "./tiny.py:tiny", *words) for dry in (["--dry-run"], [])]
    last = [result.err.splitlines()[-1] for result in results]
    assert [result.code for result in results] == [code, code] and last[0] == last[1] and said in last[0]


def test_a_study_that_runs_is_refused_and_left(main, finished, tmp_path):
    shutil.copytree(finished.root, tmp_path / "root")
    lock = tmp_path / "root" / finished.name / "lock"
    (found,) = [path for path in lock.parent.iterdir() if "lock" in path.name]
    with found.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = main("search", "--dry-run", "--root", tmp_path / "root", "--study", finished.name)
    assert done.code == 3 and "is in use by process" in done.err
