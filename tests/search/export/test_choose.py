"""What `export` ships by name is never a dead network; by number it is, and that is said."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made_study import policy, study, trial, with_pairs

from search.errors import GoalMissed, PrunefrontError, UsageError
from search.export.choose import choose_trial
from search.export.of_study import export_study
from search.export.rebuild import Export
from search.export.summary import summary
from search.progress import ProgressReporter
from search.records import FinalRecord
from search.results.state import StudyState
from search.results.view import StudyView, open_study


@pytest.fixture
def root(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "root" / "tiny")
    shutil.copytree(finished.root / "cache", tmp_path / "root" / "cache")
    return tmp_path / "root"


def with_chance(root, chance: float):
    folder = open_study(root, "tiny").folder
    folder.write_record({**folder.read_record(), "chance": chance})
    return open_study(root, "tiny")


def accuracies(view) -> dict[int, float]:
    """Of what an export of each complete trial ships."""
    numbers = [row.trial for row in view.rows if row.state == "complete"]
    chosen = [choose_trial(view, str(number)) for number in numbers]
    return {n: (c.final or c.trial).result.accuracy for n, c in zip(numbers, chosen, strict=True)}


def test_no_name_stands_for_a_dead_network(root):
    view = with_chance(root, 0.0)
    smallest = choose_trial(view, "smallest").trial
    chance = max(smallest.result.accuracy, accuracies(view)[smallest.number])
    view = with_chance(root, chance)
    shipped = {choice: choose_trial(view, choice).trial.number for choice in ("smallest", "knee", "best")}
    assert smallest.number not in shipped.values()
    assert all(accuracies(view)[number] > chance for number in shipped.values())


def test_a_trial_that_died_in_its_finals_has_no_name_either(root, monkeypatch):
    first, second = (row.trial for row in with_chance(root, 0.0).state.front if row.final_accuracy is not None)
    told, finals = StudyState.row, {first: 0.25, second: 0.5}

    def of_these_finals(state, number):
        row = told(state, number)
        return replace(row, final_accuracy=finals[number]) if number in finals else row

    monkeypatch.setattr(StudyState, "row", of_these_finals)
    for dead, alive in ((first, second), (second, first)):
        finals |= {dead: 0.25, alive: 0.5}
        view = with_chance(root, 0.25)
        named = {choose_trial(view, choice).trial.number for choice in ("smallest", "knee", "best")}
        assert alive in named and dead not in named


def test_dead_networks_go_by_their_number_with_a_word(root, main, tmp_path):
    view = with_chance(root, 1.0)
    for choice in ("smallest", "knee", "best"):
        with pytest.raises(GoalMissed, match="only dead networks"):
            choose_trial(view, choice)
    number, accuracy = next(iter(accuracies(view).items()))
    reply = main("export", "tiny", "--trial", number, "--root", root, "--out", tmp_path / "dead")
    assert reply.code == 0, reply.err
    said = [line for line in reply.err.splitlines() if "near chance" in line]
    assert len(said) == 1 and f"trial {number}" in said[0] and f"{accuracy * 100:.2f} %" in said[0]


def test_a_search_whose_finals_are_all_dead_ends_in_words(root, place, main, without_mlflow, monkeypatch):
    alive = StudyState.row
    monkeypatch.setattr(StudyState, "row", lambda state, number: replace(alive(state, number), final_accuracy=0.05))
    task = f"{place / 'tiny.py'}:tiny"
    reply = main("search", "--workload", task, "--study", "tiny", "--trials", 8, "--root", root)
    assert reply.code == 1, reply.err
    assert "All finalists are dead" in reply.out and "--trial best" not in reply.out
    assert re.search("front of [1-9]", reply.out)


def test_a_study_without_a_complete_trial_has_none_to_name(tmp_path):
    study(tmp_path).journal.write_trial(trial(0, None, 0.2))
    said = r"^trial 0 is not a complete trial of study 'hand'; it has none yet: give it more --trials$"
    with pytest.raises(UsageError, match=said):
        choose_trial(open_study(tmp_path, "hand"), "0")


def test_which_of_several_finals_is_shipped_is_said(tmp_path):
    """By hand: of validation accuracies 0.5, 0.25 and 0.75 the first is in the middle, of the first two the second."""
    folder = study(tmp_path)
    folder.journal.write_trial(record := trial(0, 0.625, 0.2))
    policy = record.policy
    manifest = {
        "sparse_bytes": 1, "dense_bytes": 4, "size_encoded": 0.25, "macs": 1.0, "accuracy": 0.5, "test_accuracy": None,
        "files": {},
    }  # fmt: skip
    said = {1: "trial 0, seed 1: ", 2: "trial 0, seed 2, the lower of 2 by validation: "}
    said[3] = "trial 0, seed 1, the median of 3 by validation: "
    for seed, accuracy in ((1, 0.5), (2, 0.25), (3, 0.75)):
        run = FinalRecord(policy.digest, seed, policy, replace(record.result, accuracy=accuracy), 0.5, 1.0, 9.0)
        folder.journal.write_final(run)
        chosen = choose_trial(open_study(tmp_path, "hand"), "0")
        made = Export(policy, None, None, record.result, None, (0.25, "encoded"), {"seed": chosen.final.seed})
        assert f"out: {said[seed]}validation" in summary(Path("out"), manifest, made, chosen.name, chosen.runs)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> StudyView:
    """Trials 14 and 12 beside `lamp`, and `uniform` at the limit; nobody changes it."""
    root = tmp_path_factory.mktemp("pairs")
    with_pairs(root)
    return open_study(root, "hand")


OF_12, AT_LIMIT = (policy(20), {"baseline": "lamp", "for_trial": 12}), (policy(21), {"baseline": "uniform"})


@pytest.mark.parametrize(
    ("choice", "name", "found"),
    [
        ("baseline:lamp@12", "baseline lamp for trial 12", OF_12),
        ("lamp for trial 12", "baseline lamp for trial 12", OF_12),
        ("baseline:lamp for trial 12", "baseline lamp for trial 12", OF_12),
        ("baseline:lamp@14", "baseline lamp for trial 14", (policy(19), {"baseline": "lamp", "for_trial": 14})),
        ("baseline:uniform@limit", "baseline uniform at the limit (channel)", AT_LIMIT),
        ("uniform at the limit (channel)", "baseline uniform at the limit (channel)", AT_LIMIT),
        ("baseline:uniform", "baseline uniform at the limit (channel)", AT_LIMIT),
        ("trial 12", "trial 12", (policy(12), {"trial": 12})),
    ],
)
def test_every_row_of_the_closing_table_is_chosen_by_name(pairs, choice, name, found):
    chosen = choose_trial(pairs, choice)
    assert (chosen.policy, dict(chosen.origin)) == found and chosen.name == name
    assert chosen.final.digest == chosen.policy.digest and chosen.remark == ""


def test_of_several_rows_of_a_rule_the_one_chosen_is_told(pairs, tmp_path):
    """The one of three runs, though the other is more accurate; before anything else is done."""
    chosen, notes = choose_trial(pairs, "baseline:lamp"), []
    assert chosen.policy == policy(19) and chosen.name == "baseline lamp for trial 14"
    assert chosen.remark == (
        "baseline:lamp may be 2 networks: it is lamp for trial 14 here; say baseline:lamp@14 for that one, "
        "baseline:lamp@12 for another"
    )
    watcher, file = ProgressReporter(), tmp_path / "file"
    watcher.note = notes.append
    file.touch()
    with pytest.raises(PrunefrontError, match="file"):
        export_study(pairs, "baseline:lamp", file, watcher)
    assert notes == [chosen.remark]


@pytest.mark.parametrize("words", ["lamp@7", "lamp for trial 7", "uniform@14", "global@12"])
def test_a_row_that_is_not_there_is_refused_with_those_that_are(pairs, words):
    said = re.escape("(3 known: lamp@12, lamp@14, uniform@limit)")
    with pytest.raises(UsageError, match=f"^unknown baseline '{words}': did you mean '.*'. {said}$"):
        choose_trial(pairs, f"baseline:{words}")


def test_a_rule_without_a_row_is_missed_with_those_that_are_there(pairs, tmp_path):
    there = "baseline:lamp@14, baseline:lamp@12 and baseline:uniform@limit"
    with pytest.raises(GoalMissed, match=rf"no complete finals of baseline 'global' \(there are {there}\): only"):
        choose_trial(pairs, "baseline:global")
    study(tmp_path)
    with pytest.raises(GoalMissed, match="no complete finals of baseline 'lamp@14': only"):
        choose_trial(open_study(tmp_path, "hand"), "baseline:lamp@14")


def test_a_picture_says_which_row_it_is_of(pairs, main, tmp_path):
    reply = main(
        "front", "hand", "--root", pairs.folder.root, "--trial", "baseline:lamp", "--picture", tmp_path / "it.svg"
    )
    assert reply.code == 0 and "it is lamp for trial 14 here" in reply.err
