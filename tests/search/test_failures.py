"""What failed for what cause, and which of it a search learns from."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import optuna
import pytest
import torch

import search.executors.evaluation
import search.study.runner
import search.training.evaluate
from pruning.channels.removal import RemovalMismatch
from search import Workload, run_search
from search.config import make_config
from search.errors import EnvironmentProblem, GoalMissed
from search.proposals.sampler import make_sampler
from search.records import TrialRecord, TrialResult, cause_of, to_plain, trial_from_plain
from search.training.evaluate import PreparedModel, evaluate_policy, failed
from search.training.losses import Diverged
from spaces.policy import PruningPolicy

CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)
POLICY = PruningPolicy({"backbone.conv1.weight": 0.25})


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Diverged("loss is nan"), "diverged"),
        (MemoryError(), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory"),
        (RuntimeError(CPU), "out-of-memory"),
        (RemovalMismatch("removal does not equal the mask: outputs differ"), "refused"),
        (KeyError("label"), "error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
    ],
    ids=repr,
)
def test_every_failure_has_its_cause(monkeypatch, vgg, vgg_graph, error, cause):
    def raises(*_arguments):
        raise error

    monkeypatch.setattr(search.training.evaluate, "fine_tune", raises)
    images = torch.ones(2, 1, 8, 8)
    workload = Workload("w", lambda: vgg, *[(images, torch.tensor([0, 1]))] * 4)
    result = evaluate_policy(PreparedModel(workload, vgg, vgg_graph), POLICY, 1, 0).result
    assert (result.state, result.cause) == ("failed", cause) and result.reason.startswith(cause)


def test_a_record_of_before_there_were_causes_has_its_reasons():
    record = TrialRecord(0, "lamp", {}, POLICY, {}, 0.25, failed("refused: outputs differ").result, 0.0, 1.0, 0.0)
    plain = json.loads(json.dumps(to_plain(record)))
    assert plain["result"].pop("cause") == "refused"
    assert trial_from_plain(plain) == record
    whole = to_plain(replace(record, result=TrialResult("complete", accuracy=0.875)))
    assert trial_from_plain(whole).result.cause is None and cause_of(None) is None


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("failing")


@pytest.fixture
def begin(root, place, without_mlflow):
    def go(study: str, **options):
        options = {"max_size": 0.5, "finalists": 0, "trials": 4, "cost": "macs", **options}
        return run_search(make_config(workload=f"{place / 'tiny.py'}:tiny", study=study, root=str(root), **options))

    return go


def heard(monkeypatch) -> dict[str, list]:
    """What the guide is taught and told to avoid, by what was called."""
    calls: dict[str, list] = {"learn": [], "avoid": []}
    for name in calls:
        real = getattr(search.study.runner.GuidedProposer, name)

        def note(guide, number, *rest, name=name, real=real):
            calls[name].append((number, *rest[1:]))
            return real(guide, number, *rest)

        monkeypatch.setattr(search.study.runner.GuidedProposer, name, note)
    return calls


@pytest.mark.slow
def test_only_what_diverged_is_learnt_as_no_accuracy_after_a_resume_and_a_lost_database_too(begin, root, monkeypatch):
    reasons = {
        1: "out-of-memory",
        2: "error: KeyError: 'x'",
        3: "diverged: loss nan",
        4: "refused: no",
        5: "crashed: 4",
    }
    real = search.executors.evaluation.evaluate_policy
    numbers = iter(range(20))

    def evaluate(*arguments, **options):
        reason = reasons.get(next(numbers))
        return failed(reason) if reason else real(*arguments, **options)

    monkeypatch.setattr(search.executors.evaluation, "evaluate_policy", evaluate)
    calls = heard(monkeypatch)
    begin("mixed", trials=7, seeds=False)
    expected = ([3], [1, 2, 4, 5])
    assert ([n for n, error in calls["learn"] if math.isnan(error)], [n for n, *_ in calls["avoid"]]) == expected
    for damage in (lambda path: None, lambda path: path.unlink()):
        damage(root / "mixed" / "study.db")
        for made in calls.values():
            made.clear()
        begin("mixed", trials=int(len(list((root / "mixed" / "journal").glob("trial-*"))) + 1))
        assert ([n for n, error in calls["learn"] if math.isnan(error)], [n for n, *_ in calls["avoid"]]) == expected


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_optunas_samplers_know_nothing_of_failed_trials(sampler):
    """The next proposal is the same whatever the failed trials' values were."""

    def next_of(wrong: float):
        study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
        float_ = optuna.distributions.FloatDistribution(0, 1)
        for n in range(14):
            study.add_trial(
                optuna.create_trial(params={"x": n / 16}, distributions={"x": float_}, values=[n / 20, 0.2, 1 - n / 30])
            )
        for _ in range(6):
            study.add_trial(
                optuna.create_trial(
                    params={"x": wrong}, distributions={"x": float_}, state=optuna.trial.TrialState.FAIL
                )
            )
        study.sampler = make_sampler(sampler, 3, 20)
        return study.ask().suggest_float("x", 0, 1)

    assert next_of(0.125) == next_of(0.875)


@pytest.mark.parametrize(
    ("reason", "kind", "remedy"),
    [
        ("error: KeyError: 'label'", GoalMissed, "repair what raised it and run the same command"),
        ("out-of-memory", EnvironmentProblem, "smaller --batch"),
    ],
)
def test_a_study_that_no_policy_can_save_ends_after_three_trials_and_goes_on_once_mended(
    begin, root, monkeypatch, reason, kind, remedy
):
    study = reason[:5]
    with monkeypatch.context() as broken:
        broken.setattr(search.executors.evaluation, "evaluate_policy", lambda *_, **__: failed(reason))
        for count in (3, 6):
            with pytest.raises(kind, match=remedy):
                begin(study, trials=8)
            assert len(list((root / study / "journal").glob("trial-*"))) == count
    assert begin(study, trials=8).counts["complete"] == 2


@pytest.mark.parametrize("reasons", [["error: a", "error: b"], ["diverged: nan"], ["refused: a"]], ids=repr)
def test_a_study_whose_trials_fail_by_their_policies_or_each_by_itself_goes_on(begin, monkeypatch, reasons):
    numbers = iter(range(20))
    monkeypatch.setattr(
        search.executors.evaluation, "evaluate_policy", lambda *_, **__: failed(reasons[next(numbers) % len(reasons)])
    )
    assert begin(f"going-{len(reasons)}-{reasons[0][:3]}", trials=4).counts["failed"] == 4
