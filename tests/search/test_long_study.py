"""What a trial costs does not grow with the trials before it: counted, not timed."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial

import search.executors.evaluation
import search.files
import search.results.state
import search.store.journal
import search.study.runner
import search.training.attempts
from search import run_search
from search.config import make_config
from search.records import COMPLETE, TrialRecord, TrialResult
from search.store.tracker import Tracker
from search.training.evaluate import Evaluation
from spaces.cost.footprint import footprint, relative_cost
from spaces.policy import PruningPolicy

EARLY, LATE = range(4, 8), range(14, 18)


class Enough(Exception):
    """Ends a study before its finals."""


@contextmanager
def statements():
    """Counts what any database is asked while it is open."""
    counts, engine = Counter(), sqlalchemy.engine.Engine

    def executed(*_):
        counts["statements"] += 1

    def committed(*_):
        counts["commits"] += 1

    listeners = [("before_cursor_execute", executed), ("commit", committed)]
    for event, listener in listeners:
        sqlalchemy.event.listen(engine, event, listener)
    try:
        yield counts
    finally:
        for event, listener in listeners:
            sqlalchemy.event.remove(engine, event, listener)


@pytest.fixture(scope="module")
def counted(place, tmp_path_factory):
    """Of each trial, from its predecessor's evaluation to its own: counts by name."""
    now, told, records, trackers = Counter(), [], set(), []

    def counting(name, function):
        def counted(*arguments, **options):
            now[name] += 1
            return function(*arguments, **options)

        return counted

    class Waited(Tracker):
        def start(self, *arguments):
            trackers.append(self)
            super().start(*arguments)

    def looked_at(record, name):
        records.add(id(record))
        return object.__getattribute__(record, name)

    with statements() as asked, pytest.MonkeyPatch.context() as patch:

        def evaluate(subject, policy, *_, **__):
            trackers[0].wait()  # so that what MLflow's thread does counts where it belongs
            told.append(Counter(asked) + now + Counter({"records": len(records)}))
            if len(told) == LATE.stop:
                raise Enough
            cost = relative_cost(footprint(subject.network, policy), subject.dense_cost)
            accuracy = 0.5 + float(np.random.default_rng([7, len(told)]).uniform(0, 0.4))
            for counter in (asked, now, records):
                counter.clear()
            return Evaluation(TrialResult(COMPLETE, accuracy=accuracy, loss=0.25, shares=cost))

        patch.setattr(search.study.runner, "Tracker", Waited)
        patch.setattr(search.executors.evaluation, "evaluate_policy", evaluate)
        patch.setattr(search.results.state, "trial_row", counting("rows of tables", search.results.state.trial_row))
        patch.setattr(search.store.journal, "read_text", counting("entries read", search.files.read_text))
        for writer in (search.store.journal, search.training.attempts):
            patch.setattr(writer, "write_durably", counting("entries written", search.files.write_durably))
        patch.setattr(
            FrozenTrial,
            "number",
            property(counting("Optuna's trials", FrozenTrial.number.fget), FrozenTrial.number.fset),
        )
        patch.setattr(PruningPolicy, "to_dict", counting("policies written", PruningPolicy.to_dict))
        patch.setattr(TrialRecord, "__getattribute__", looked_at)
        with pytest.raises(Enough):
            run_search(
                make_config(
                    workload=f"{place / 'tiny.py'}:tiny", root=str(tmp_path_factory.mktemp("long")), max_size=0.5,
                    trials=99, sampler="random", seeds=False, finalists=2, cost="macs",
                )
            )  # fmt: skip
    return told


@pytest.mark.parametrize("what", ["statements", "commits", "Optuna's trials", "policies written"])
def test_a_later_trial_asks_no_more(counted, what):
    early, late = ([counted[place][what] for place in places] for places in (EARLY, LATE))
    assert min(early) > 0 and max(late) <= max(early)


def test_a_trial_reads_no_entry_and_builds_no_table(counted):
    assert not any(trial["entries read"] or trial["rows of tables"] for trial in counted[1:])


def test_a_trial_is_written_down_when_it_begins_and_when_it_has_ended(counted):
    assert [trial["entries written"] for trial in counted[1:]] == [2] * (LATE.stop - 1)


def test_a_trial_looks_at_few_records_before_it(counted):
    """Its own, the best, two finalists, and what it pushed off the front."""
    assert 0 < max(trial["records"] for trial in counted[1:]) <= 6 < LATE.start
