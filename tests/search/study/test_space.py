"""What a study searches: granularities, schedules, counts to a multiple, and removals before masks."""

from __future__ import annotations

import pytest
from written_studies import proposed, records

from search.errors import UsageError
from search.store.journal import Journal
from spaces import GRANULARITIES

pytestmark = pytest.mark.usefixtures("without_mlflow")


@pytest.mark.slow
def test_every_granularity_can_be_searched(begin):
    """Seeds, the scan and proposals of all of them, and mixed; no trial fails or is beyond the limit."""
    study = begin("units", granularity=GRANULARITIES, mixed=True, max_size=0.8, trials=24)
    trials = study.trials
    assert set(trials["state"]) == {"complete"}
    assert (trials["size"] <= 0.8).all()
    tried = set(trials["granularity"])
    assert tried >= {"fine-grained", "vector", "kernel", "channel", "2:4", "mixed"}
    assert {"swap", "unpruned", "scan"} <= set(trials["origin"])


@pytest.mark.slow
def test_a_study_takes_other_schedules(begin):
    study = begin("rounds", schedule="iterative", trials=8)
    assert set(study.trials["state"]) == {"complete"} and set(study.trials["schedule"]) == {"iterative"}
    with pytest.raises(UsageError, match="schedule cubic is the polynomial of exponent 3, and a search samples the"):
        begin("wrong", schedule="cubic", trials=2)


@pytest.mark.slow
def test_a_study_keeps_counts_to_a_multiple(begin):
    study = begin("rounded", granularity="channel", round_to=4, trials=10)
    assert set(study.trials["state"]) == {"complete"}
    kept = {record.policy.digest: record for record in Journal(study.folder / "journal").trials()}
    for record in kept.values():
        for name, count in (("conv0.weight", 8), ("conv1.weight", 16)):
            assert round((1 - record.result.achieved[name]) * count) % 4 == 0


@pytest.mark.slow
def test_a_study_of_removals_before_masks_is_searched_and_resumed(begin, root):
    """Any limit on MACs, which masks alone are not within, holds for them too."""
    options = {"granularity": "channel,channel+fine-grained,channel+*:4", "max_macs": 0.8, "bits": 32}
    begin("in-turn", trials=5, **options)
    before = proposed(root, "in-turn")
    study = begin("in-turn", trials=10, **options)
    assert proposed(root, "in-turn")[:5] == before
    assert set(study.trials["state"]) == {"complete"}
    assert set(study.trials["granularity"]) >= {"channel", "channel+fine-grained"}
    for trial in records(root, "in-turn"):
        own = trial.params["granularity"] != "channel"
        assert trial.result.shares.encoded <= trial.target <= 0.5 and trial.result.shares.macs <= 0.8
        assert (trial.policy.removal == {}) == (not own) and 0.1 <= trial.params["removal"] <= 0.9
        told = study.trials.set_index("trial")["removal"][trial.number]  # None where nothing is asked for
        assert (told or {}) == dict(trial.policy.removal)


def test_a_word_for_whole_policies_is_refused_for_mixed_layers(begin):
    with pytest.raises(UsageError, match="'channel\\+kernel' is for a whole policy, not for mixed layers"):
        begin("no", granularity="fine-grained,channel+kernel", mixed=True)
    with pytest.raises(UsageError, match=r"unknown granularity 'channel\+kernal': did you mean 'channel\+kernel'"):
        begin("no", granularity="channel+kernal")


@pytest.mark.slow
def test_finalists_and_baselines_of_removals_before_masks(begin):
    study = begin("in-turn-finals", granularity="channel+fine-grained", trials=3, finalists=1, final_seeds=1)
    assert study.comparison.granularity == "channel+fine-grained" and study.comparison.matched
    assert study.finals.keys() >= {one.digest for one in study.comparison.matched.values()}
    assert all(final.size_encoded <= 0.5 for final in study.finals.values())
