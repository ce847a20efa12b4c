"""The study that samplers see: numbered as the journal, and the same however many processes ran it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from search.knew import Knew, Numbers
from search.proposals.optuna_study import Objectives, OptunaStudy, stored_params
from search.proposals.replay import replay
from search.records import DIVERGED, FAILED, SAMPLED, PendingTrial, TrialRecord, TrialResult
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy
from spaces.search_space.space import Axis

AXES = (
    Axis("size", 0.0625, 0.5, log=True),
    Axis("granularity", choices=("fine-grained", "channel", "2:4")),
    Axis("bits", choices=("8", "6", "4")),
    *(Axis(f"preference.{name}") for name in "abc"),
)
SEED = {"size": 0.25, "granularity": "2:4", "bits": "6"} | {
    "preference.a": 0.5, "preference.b": 0.125, "preference.c": 0.75
}  # fmt: skip


def evaluated(number: int, params: dict, origin: str) -> TrialRecord:
    """A record whose result follows from its parameters; some fail."""
    drawn = np.random.default_rng([5, int(1e9 * params["size"])])
    if drawn.random() < 0.1:
        result = TrialResult(FAILED, "diverged: nan", cause=DIVERGED)
    else:
        names = dict.fromkeys(RelativeCost.__dataclass_fields__, 0.5)
        cost = RelativeCost(**names | {"encoded": params["size"], "macs": float(drawn.random())})
        result = TrialResult("complete", accuracy=float(drawn.random()), loss=1.0, shares=cost)
    return TrialRecord(number, origin, params, PruningPolicy({"a": 0.5}), {}, 0.5, result, 0.0, 1.0, 0.0)


def asked(study: OptunaStudy, params: dict | None = None, origin: str = SAMPLED) -> TrialRecord:
    """The next trial, sampled and evaluated, not told."""
    trial = study.ask(params, origin)
    for axis in AXES:
        axis.suggest(trial)
    return evaluated(trial.number, dict(trial.params), origin)


def run(study: OptunaStudy, records: list[TrialRecord], count: int) -> list[TrialRecord]:
    while len(records) < count:
        seeded = study.next_number < 2
        record = asked(study, SEED if seeded else None, "lamp" if seeded else SAMPLED)
        study.tell(record)
        records.append(record)
    return records


def resumed(sampler: str, records: list[TrialRecord]) -> OptunaStudy:
    study = OptunaStudy(sampler, 3, AXES)
    for record in json.loads(json.dumps([[r.number, dict(r.params), r.origin] for r in records])):
        study.add(evaluated(*record))
    return study


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow), "guided"])
@pytest.mark.parametrize("places", [(1, 15), (14, 28)])
def test_a_study_resumed_anywhere_proposes_what_it_would_have(sampler, places):
    """Also where the trial that was cut off is asked for again by what it was; NSGA-II's generations have 12 trials."""
    count = 18 if sampler == "gp" else 40
    straight = run(OptunaStudy(sampler, 3, AXES), [], count)
    records: list[TrialRecord] = []
    for place in places:
        study = resumed(sampler, records)
        run(study, records, min(place, count - 2))
        cut = asked(study)
        again = resumed(sampler, records)
        if place == places[1] and cut.number > 1:
            cut = asked(again, dict(cut.params))
            again.tell(cut)
            records.append(cut)
    run(again, records, count)
    assert [record.params for record in records] == [record.params for record in straight]
    assert len({json.dumps(record.params) for record in records}) > count // 2


def at_once(sampler: str, workers: int, count: int) -> tuple[dict[int, TrialRecord], list[int]]:
    """Trials by number, of which this many ran side by side, and the order in which they ended."""
    study, random = OptunaStudy(sampler, 3, AXES), np.random.default_rng(7)
    trials, ended = {}, []
    while len(ended) < count:
        while len(study.pending) < workers and len(trials) < count:
            seeded = study.next_number < 2
            record = asked(study, SEED if seeded else None, "lamp" if seeded else SAMPLED)
            trials[record.number] = replace(record, knew=study.knew(record.number))
        ended.append(int(random.choice(study.pending)))
        study.tell(trials[ended[-1]])
    return trials, ended


SAMPLERS = ["random", "tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow), "guided"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("workers", [1, 4])
def test_a_replay_repeats_a_proposal_from_what_it_knew(sampler, workers):
    """NSGA-II's generations have 12 trials."""
    trials, ended = at_once(sampler, workers, 18 if sampler == "gp" else 40)
    assert (ended == sorted(ended)) is (workers == 1)
    assert [n for n, trial in trials.items() if trial.knew] == ([] if workers == 1 else list(range(2, len(trials))))
    chosen = (2, 3, 9, 17) if sampler == "gp" else (2, 3, 13, 16, 17, 30, 39)
    for number in chosen:
        study = OptunaStudy(sampler, 3, AXES)
        assert replay(study, number, trials) == trials[number].params, number
        assert study.knew(number) == trials[number].knew
    if sampler != "random" and workers > 1:
        blind = {n: replace(trial, knew=None) for n, trial in trials.items()}
        assert any(replay(OptunaStudy(sampler, 3, AXES), n, blind) != trials[n].params for n in chosen)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("place", [9, 14, 27])
def test_a_study_cut_off_with_trials_running_proposes_what_it_would_have(sampler, place):
    """Those that ran are begun again as they were, in the order of all numbers."""
    trials, _ = at_once(sampler, 4, 18 if sampler == "gp" else 40)
    number = min(place, 16) if sampler == "gp" else place
    wanted, study = trials[number], OptunaStudy(sampler, 3, AXES)
    for other in range(number):
        trial = trials[other]
        if other in wanted.knew.running:
            study.begin(PendingTrial(trial.number, trial.origin, trial.params, knew=trial.knew))
        else:
            study.add(trial)
    assert study.pending == [n for n in range(number) if n in wanted.knew.running]
    assert asked(study).params == wanted.params and study.knew(number) == wanted.knew


def test_what_a_trial_knew_is_told_unless_it_follows_from_one_worker():
    study = OptunaStudy("random", 3, AXES)
    records = [asked(study, SEED, "lamp"), *(asked(study) for _ in range(3))]
    assert study.pending == [0, 1, 2, 3] and study.next_number == 4
    study.tell(records[2])
    study.tell(records[0])
    records.append(asked(study))
    assert study.pending == [1, 3, 4]
    assert study.knew(0) is None
    assert study.knew(1) == Knew(Numbers(), Numbers.of([0]))
    assert study.knew(4) == Knew(Numbers.of([0, 2]), Numbers.of([1, 3]))
    for number in (4, 1, 3):
        study.tell(records[number])
    asked(study)
    assert study.pending == [5] and study.knew(5) is None
    study.tell(evaluated(5, SEED, "lamp"))
    again = asked(study, SEED, SAMPLED)
    assert again.number == 6 and study.knew(6) is None


def test_a_replay_lacks_nothing_that_was_known():
    trials, _ = at_once("random", 4, 12)
    knew = trials[9].knew
    for number, part in ((knew.finished.runs[0][0], "finished"), (knew.running.runs[0][0], "running")):
        left = {n: trial for n, trial in trials.items() if n != number}
        with pytest.raises(ValueError, match="trial 9 knew 9 trials, and 8 are there"):
            replay(OptunaStudy("random", 3, AXES), 9, left)
        left[number] = PendingTrial(number, SAMPLED, trials[number].params, knew=trials[number].knew)
        if part == "finished":
            with pytest.raises(ValueError, match="8 are there"):
                replay(OptunaStudy("random", 3, AXES), 9, left)
        else:
            assert replay(OptunaStudy("random", 3, AXES), 9, left) == trials[9].params


def test_what_is_missing_among_others_is_asked_for_first():
    whole = run(OptunaStudy("random", 3, AXES), [], 5)
    study = resumed("random", [whole[0], whole[2], whole[4]])
    assert [study.next_number] + [asked(study).number for _ in range(3)] == [1, 1, 3, 5]


def test_a_widened_axis_and_words_of_old_are_stored_as_far_as_they_can_be():
    params = {"size": 0.03125, "granularity": "4:4", "preference.a": 0.5, "gone": 1.0, "preference.b": "high"}
    kept, distributions = stored_params(params, AXES)
    assert kept == {"size": 0.03125, "preference.a": 0.5} and kept.keys() == distributions.keys()
    assert (distributions["size"].low, distributions["size"].high, distributions["size"].log) == (0.03125, 0.5, True)
    record = TrialRecord(**{**vars(evaluated(0, SEED, "lamp")), "params": params})
    study = OptunaStudy("random", 3, AXES)
    study.add(record)
    assert asked(study).number == 1


@pytest.mark.parametrize(
    ("changes", "can"),
    [({}, True), ({"size": 0.75}, False), ({"granularity": "4:4"}, False), ({"bits": 8}, False), ({"more": 0.5}, False),
     ({"preference.a": None}, False), ({"preference.a": 1}, True), ({"preference.c": float("nan")}, False)],
)  # fmt: skip
def test_only_what_lies_within_every_axis_can_be_asked(changes, can):
    study = OptunaStudy("random", 3, AXES)
    assert study.can_ask(SEED | changes) is can
    assert not study.can_ask({key: value for key, value in SEED.items() if key != "size"})


def test_objectives_are_those_of_the_limits_measure_and_of_the_speed():
    record = evaluated(0, SEED, "lamp")
    record = TrialRecord(**{**vars(record), "latency": 0.375})
    cost = record.result.shares
    assert Objectives().of(record) == [record.result.accuracy, 0.25, cost.macs]
    assert Objectives("nonzero", "latency").of(record) == [record.result.accuracy, 0.5, 0.375]
    assert Objectives("nonzero", "latency", "mAP").names == [
        "validation mAP (share of its range)", "nonzero size (share of dense)", "predicted latency (share of dense)",
    ]  # fmt: skip
