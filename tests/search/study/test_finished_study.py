"""A finished study: its trials, what Optuna and the journal know of them, and what comes of asking for it again."""

from __future__ import annotations

import json

import optuna
import pytest
from watchers import Interrupt
from written_studies import records, stored

from search.errors import UsageError
from search.proposals.pool import FRACTIONS
from spaces.allocation.allocators import ALLOCATORS
from spaces.search_space.initial import UNPRUNED

pytestmark = pytest.mark.usefixtures("without_mlflow")


def test_a_study_is_numbered_without_gaps_and_seeds_take_at_most_half(whole, root):
    found = records(root, "whole")
    assert [trial.number for trial in found] == list(range(7)) == [trial.number for trial in stored(root, "whole")]
    origins = [trial.origin for trial in found]
    assert set(origins[:3]) <= {*ALLOCATORS, UNPRUNED} and set(origins[3:]) <= set(FRACTIONS)
    assert whole.counts["complete"] == 7
    for trial, theirs in zip(found, stored(root, "whole"), strict=True):
        shares = trial.result.shares
        assert theirs.values == [trial.result.accuracy, shares.encoded, shares.macs]
        assert theirs.params == dict(trial.params)


def test_the_front_is_optunas(whole, root):
    best = optuna.load_study(study_name="whole", storage=f"sqlite:///{root / 'whole' / 'study.db'}").best_trials
    assert set(whole.front["trial"]) == {trial.number for trial in best if trial.values[0] > whole.state.chance}


def test_every_trial_is_within_the_limit(whole, root):
    assert all(trial.result.shares.encoded <= trial.target <= 0.5 for trial in records(root, "whole"))


def test_only_the_front_keeps_weights(whole, root):
    kept = {int(path.stem[-5:]) for path in (root / "whole" / "checkpoints").iterdir()}
    assert kept == set(whole.front["trial"])


def test_what_the_guide_knew_is_in_the_journal_and_in_optuna(whole, root):
    for trial, theirs in zip(records(root, "whole"), stored(root, "whole"), strict=True):
        assert dict(trial.scores) == theirs.user_attrs.get("scores", {})
        assert trial.origin == theirs.user_attrs["origin"]
    known = records(root, "whole")[-1].scores
    assert 0 <= known["predicted_low"] <= known["predicted"] <= known["predicted_high"] <= 1 and known["gain"] >= 0


def test_optuna_knows_what_came_of_the_preferences(whole, root):
    study = optuna.load_study(study_name="whole", storage=f"sqlite:///{root / 'whole' / 'study.db'}")
    assert study.metric_names == [
        "validation accuracy (share of 1)", "encoded size (share of dense)", "MACs (share of dense)",
    ]  # fmt: skip
    for trial, theirs in zip(records(root, "whole"), study.trials, strict=True):
        assert {name for name in theirs.params if "." in name} >= {f"preference.{name}" for name in trial.sampled}
        landed, shares = theirs.user_attrs["landed"], trial.result.shares
        assert landed == {
            "granularity": trial.policy.granularity_label, "bits": trial.policy.bits, "size": shares.encoded,
            "macs": shares.macs, "sparsity": dict(trial.result.achieved),
        }  # fmt: skip
        assert theirs.params["bits"] == str(trial.policy.bits) in ("8", "6", "4", "3")


def test_a_finished_study_returns_at_once_and_changes_no_file(begin, whole, root):
    before = {path: path.read_bytes() for path in (root / "whole" / "journal").iterdir()}
    watcher = Interrupt()
    begin("whole", watcher, trials=7)
    assert watcher.asked == []
    assert {path: path.read_bytes() for path in (root / "whole" / "journal").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_size": 0.4}, "max-size was 0.5, is 0.4"),
        ({"sampler": "random"}, "sampler was 'guided', is 'random'"),
        ({"granularity": ("channel",)}, "granularity was"),
        ({"seeds": False}, "warm-start was True, is False"),
        ({"criterion": "random"}, "criterion was"),
        ({"size_metric": "nonzero"}, "size-metric was"),
        ({"seed": 9}, "seed was 0, is 9"),
        ({"final_repeats": 2, "granularity": "kernel"}, "granularity was"),
        ({"mixed": True}, "mixed was False, is True"),
        ({"bits": (8, 3)}, "bits was (8, 6, 4, 3), is (8, 3)"),
    ],
)
def test_only_budgets_may_change(begin, whole, root, change, said):
    with pytest.raises(UsageError) as raised:
        begin("whole", trials=7, **change)
    assert said in str(raised.value)
    kept = json.loads((root / "whole" / "study.json").read_text())["config"]
    assert kept["max_size"] == 0.5 and kept["trials"] == 7
