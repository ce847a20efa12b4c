"""The samplers in a study: seeds before them, the origin of their trials, and that each repeats itself."""

from __future__ import annotations

import json

import pytest
from watchers import Interrupt
from written_studies import proposed, records

from search.proposals.pool import FRACTIONS

pytestmark = pytest.mark.usefixtures("without_mlflow")


def test_seeds_can_be_left_out(begin, root):
    begin("unseeded", trials=3, seeds=False)
    assert {trial.origin for trial in records(root, "unseeded")} <= set(FRACTIONS)


def test_a_stock_sampler_is_named_as_the_origin(begin, root):
    begin("stock", trials=3, sampler="random")
    assert [trial.origin for trial in records(root, "stock")][1:] == ["sampler"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "gp"])
def test_every_sampler_runs_and_repeats_itself(begin, root, sampler):
    """Of the others, the resumed study below."""
    for study in (f"{sampler}-a", f"{sampler}-b"):
        assert begin(study, trials=4, sampler=sampler, seed=3).counts["complete"] == 4
    assert proposed(root, f"{sampler}-a") == proposed(root, f"{sampler}-b")
    assert len({json.dumps(params) for params in proposed(root, f"{sampler}-a")}) == 4


@pytest.mark.slow
def test_another_seed_proposes_otherwise(begin, root):
    begin("stock", trials=3, sampler="random")
    begin("other", trials=3, sampler="random", seed=4)
    for one, other in zip(proposed(root, "stock")[1:], proposed(root, "other")[1:], strict=True):
        assert one["size"] != other["size"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["guided", "tpe", "nsga2"])
def test_a_resumed_study_proposes_what_it_would_have_proposed(begin, root, sampler):
    """13 trials, so that TPE's 10 random ones are over and NSGA-II has a second generation."""
    options = {"trials": 13, "sampler": sampler}
    begin(f"{sampler}-straight", **options)
    with pytest.raises(KeyboardInterrupt):
        begin(f"{sampler}-broken", Interrupt(after=4), **options)
    with pytest.raises(KeyboardInterrupt):
        begin(f"{sampler}-broken", Interrupt(after=8), **options)
    assert len(records(root, f"{sampler}-broken")) == 12
    begin(f"{sampler}-broken", **options)
    assert proposed(root, f"{sampler}-broken") == (straight := proposed(root, f"{sampler}-straight"))
    assert len({json.dumps(params) for params in straight}) == 13
