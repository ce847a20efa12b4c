"""The honest end of a study: finalists and static baselines, fine-tuned at full length and tested once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from search.progress import ProgressReporter
from search.results.comparison import (
    DENSE,
    REFERENCE_BITS,
    Comparison,
    Reference,
    read_comparison,
    rounded_name,
    write_comparison,
)
from search.study.baselines import ShortRuns
from search.study.contest import Contest
from search.study.device_finals import timed_by_command
from search.study.final_runs import FinalRuns
from search.study.running import RunningStudy
from search.training.checkpoints import load_model
from search.training.dense_model import build_model
from search.training.ends import example_count
from search.training.evaluate import Evaluation, PreparedModel, evaluate_untrained
from search.training.latency_cache import Unmeasured, time_finals
from search.training.scoring import score, test_scores
from spaces.cost.timing import TimedNetworks
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector


def compare_finals(study: RunningStudy, projector: Projector, named: Sequence[int] = ()) -> Comparison:
    """Fine-tune and test what has not been yet, run by run, and write down what is compared, which the study's state
    then knows.

    Args:
        named: trials that are finalists whatever the front says.

    Raises:
        UsageError: test data cannot be read to their end.
    """
    test_examples = example_count(study.subject.workload, "test")  # or refused, before any run is spent
    subject, state, known = study.subject, study.state, read_comparison(study.folder)
    contest, shorts = Contest(study.config, projector, state, named, known), ShortRuns(study)
    runs = FinalRuns(study, lambda: contest.runs_left, lambda: contest.short_seconds_left)
    standing: object = None
    while standing != contest.standing:  # a baseline can be a trial, which then may lead
        while asked := contest.undecided():
            runs.run(asked)
        standing = contest.standing
        contest.choose_baselines(shorts.accuracies)
        runs.run(contest.baselines)
    runs.tell_failures()
    comparison = replace(
        contest.comparison,
        references=_references(subject, known.references if known else {}, study.watcher),
        latency=known.latency if known else None,
        test_examples=test_examples,
    )
    if study.config.needs_latency or study.config.latency_command:
        comparison = replace(comparison, latency=_timed(study, comparison))
    write_comparison(study.folder, comparison)
    state.comparison = comparison
    return comparison


def _timed(study: RunningStudy, comparison: Comparison) -> TimedNetworks | None:
    """Time all compared networks side by side, in shared rounds, unless that was done in this environment before;
    None if they cannot be timed, which is said."""
    subject, scores, command = study.subject, study.state.scores, study.config.latency_command
    kept = {d: study.folder.final_weights(d, scores[d].best_seed) for d in comparison.digests if d in scores}
    kept = {digest: path for digest, path in kept.items() if path.is_file()}
    before, here = comparison.latency, (subject.workload.placement.name, torch.get_num_threads())
    if before and before.networks.keys() >= kept.keys():
        if before.command and command in (None, before.command):
            return before
        if not (before.command or command) and (before.device, before.threads) == here:
            return before
    dense = build_model(subject.workload, study.config.dense_seed)
    networks = {digest: load_model(dense, path)[0] for digest, path in kept.items()}
    try:
        if command:
            policies = {final.digest: final.policy for final in study.state.finals}
            return timed_by_command(command, subject, networks, policies, study.watcher)
        with study.watcher.stage("latency of the finals") as progress:
            return time_finals(subject, networks, progress)
    except Unmeasured as error:
        how = "without latency, which" if before is None else "with the latency measured before, as it now"
        study.watcher.note(f"finals are compared {how} cannot be measured ({error})")
        return before


def _references(
    subject: PreparedModel, known: Mapping[str, Reference], watcher: ProgressReporter
) -> dict[str, Reference]:
    """The dense model and its roundings, as far as they are not known; one that fails is told and left out."""
    found = {}
    for name, bits in {DENSE: None, **{rounded_name(bits): bits for bits in REFERENCE_BITS}}.items():
        reference = known.get(name) or (_dense(subject) if bits is None else _rounded_dense(subject, bits))
        if isinstance(reference, str):
            watcher.note(f"{name} is left out of the comparison: {reference}")
        else:
            found[name] = reference
    return found


def _dense(subject: PreparedModel) -> Reference | str:
    tested = test_scores(subject.dense, subject.workload)
    if isinstance(tested, str):
        return tested
    return Reference(score(subject.dense, "validation", subject.workload).accuracy, tested.accuracy, 1.0, 1.0)


def _rounded_dense(subject: PreparedModel, bits: int) -> Reference | str:
    evaluation = _rounded(subject, bits)
    if evaluation.model is None:
        return str(evaluation.result.reason)
    tested = test_scores(evaluation.model, subject.workload)
    if isinstance(tested, str):
        return tested
    accuracy, _, shares = evaluation.result.measured
    return Reference(accuracy, tested.accuracy, shares.encoded, shares.nonzero)


def _rounded(subject: PreparedModel, bits: int) -> Evaluation:
    """The dense model with weights of so many bits, as its file holds it, nothing trained but running statistics."""
    policy = PruningPolicy({}, bits=bits)
    return evaluate_untrained(subject, replace(policy, criterion=subject.scored or policy.criterion))
