"""The honest end of a study: finalists and static baselines, fine-tuned at full length and tested once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from search.config import SearchConfig
from search.executors.dispatch import evaluations
from search.executors.jobs import Executor, Job
from search.metric import Metric, told_share
from search.progress import ProgressReporter, duration
from search.records import COMPLETE, FinalRecord, TrialResult
from search.results.comparison import (
    DENSE,
    REFERENCE_BITS,
    Comparison,
    Reference,
    read_comparison,
    rounded_name,
    write_comparison,
)
from search.results.state import StudyState
from search.results.tables import FinalScore
from search.store.folder import StudyFolder
from search.store.journal import Journal
from search.study.baselines import ShortRuns, baseline_choices, best_baselines
from search.study.clock import StudyClock
from search.study.loop_remarks import LoopRemarks
from search.training.attempts import Attempt
from search.training.checkpoints import load_model
from search.training.dense_model import build_model
from search.training.evaluate import Evaluation, PreparedModel, evaluate_untrained
from search.training.latency_cache import Unmeasured, time_finals
from search.training.scoring import score, test_scores
from search.workloads.run import FINAL
from spaces.cost.timing import TimedNetworks
from spaces.policy import PruningPolicy
from spaces.search_space.projection import Projector


def compare_finals(
    config: SearchConfig,
    folder: StudyFolder,
    subject: PreparedModel,
    projector: Projector,
    state: StudyState,
    clock: StudyClock,
    watcher: ProgressReporter,
    executor: Executor,
) -> Comparison:
    """Fine-tune and test what has not been yet, run by run, and write down what is compared; `state` takes it in."""
    finalists = [state.records[number].policy for number in state.finalists(config.finalists)]
    choices = baseline_choices(projector, finalists)
    shorts = ShortRuns(config, folder, subject, state, clock, watcher, executor)
    baselines = best_baselines(choices, shorts.accuracies(choices))
    named = {f"finalist {n}": policy for n, policy in enumerate(finalists, 1)} | baselines
    seeds = [config.seed + 1 + n for n in range(config.final_repeats)]
    runs = {(policy.digest, seed): (name, policy) for name, policy in named.items() for seed in seeds}
    _run_finals(config, folder, subject, runs, state, clock, watcher, executor)
    _tell_failures(folder.journal, state.finals, runs, watcher)
    known = read_comparison(folder)
    comparison = Comparison(
        references=_references(subject, known.references if known else {}, watcher),
        baselines={name: policy.digest for name, policy in baselines.items()},
        granularity=projector.space.usable[0],
        finalists=tuple(policy.digest for policy in finalists),
        latency=known.latency if known else None,
        test_examples=subject.workload.examples("test").counted() if subject.workload.reads("test") else None,
        bits={name: policy.bits for name, policy in baselines.items() if isinstance(policy.bits, int)},
    )
    if config.needs_latency:
        comparison = replace(comparison, latency=_timed(config, folder, subject, state.scores, comparison, watcher))
    write_comparison(folder, comparison)
    state.comparison = comparison
    return comparison


def _run_finals(
    config: SearchConfig,
    folder: StudyFolder,
    subject: PreparedModel,
    runs: Mapping[tuple[str, int], tuple[str, PruningPolicy]],
    state: StudyState,
    clock: StudyClock,
    watcher: ProgressReporter,
    executor: Executor,
) -> None:
    """Full-length fine-tunes of policies by digest and seed, but for those that are done.

    Their time limit is a trial's, times the ratio of their epochs if that is above 1.
    """
    done_before = {(final.digest, final.seed) for final in state.finals}
    missing = {run: what for run, what in runs.items() if run not in done_before}
    recipe, limit = subject.workload.recipe, config.trial_timeout
    if limit is not None:
        limit *= max(recipe.final_epochs / recipe.trial_epochs, 1)
    jobs, seeds = {}, {}
    for number, ((digest, seed), (name, policy)) in enumerate(missing.items(), 1):
        job = Job(
            key=f"{digest}-{seed}",
            name=f"the final run of {name} with seed {seed}",
            label=f"final run {number}/{len(missing)} ({name}, seed {seed})",
            policy=policy,
            epochs=recipe.final_epochs,
            seed=seed,
            stage=FINAL,
            limit=limit,
            is_tested=True,
            weights=folder.final_weights(digest, seed),
        )
        jobs[job.key], seeds[job.key] = job, (number, name)
    began, remarks = clock.seconds, LoopRemarks(watcher)
    ended = evaluations(executor, iter(jobs.values()), folder.journal.folder, config.attempts, watcher.note)
    for count, done in enumerate(ended, 1):
        job, (number, name) = done.job, seeds[done.job.key]
        remarks.tell(job.name, done.result)
        if not done.keep_weights():
            watcher.note(f"the weights of {job.name} are gone with their node: export repeats it")
        accuracy, loss = (done.tested.accuracy, done.tested.loss) if done.tested else (None, None)
        scored = done.result, accuracy, loss, clock.seconds, done.worker
        record = FinalRecord(job.policy.digest, job.seed, job.policy, *scored)
        folder.journal.write_final(record)
        Attempt(folder.journal.folder, job.key).finish()
        state.add_final(record)
        left = (clock.seconds - began) / count * (len(missing) - count)
        watcher.headline(_headline(f"final run {number}/{len(missing)} ({name})", done.result, left, state.unit))


def _tell_failures(
    journal: Journal,
    finals: Sequence[FinalRecord],
    runs: Mapping[tuple[str, int], tuple[str, PruningPolicy]],
    watcher: ProgressReporter,
) -> None:
    for final in sorted(finals, key=lambda final: (final.digest, final.seed)):
        if final.result.state != COMPLETE and (what := runs.get((final.digest, final.seed))):
            path = journal.final_path(final.digest, final.seed)
            watcher.note(
                f"the final run of {what[0]} with seed {final.seed} failed ({final.result.reason}) and is left out "
                f"of the means: to repeat it, delete {path} and run `prunefront search` again"
            )


def _timed(
    config: SearchConfig,
    folder: StudyFolder,
    subject: PreparedModel,
    scores: Mapping[str, FinalScore],
    comparison: Comparison,
    watcher: ProgressReporter,
) -> TimedNetworks | None:
    """Time all compared networks side by side, in shared rounds, unless that was done in this environment before;
    None if they cannot be timed, which is said."""
    digests = dict.fromkeys([*comparison.finalists, *comparison.baselines.values()])
    kept = {d: folder.final_weights(d, scores[d].best_seed) for d in digests if d in scores}
    kept = {digest: path for digest, path in kept.items() if path.is_file()}
    before, here = comparison.latency, (subject.workload.placement.name, torch.get_num_threads())
    if before and (before.device, before.threads) == here and before.networks.keys() >= kept.keys():
        return before
    dense = build_model(subject.workload, config.dense_seed)
    networks = {digest: load_model(dense, path)[0] for digest, path in kept.items()}
    try:
        with watcher.stage("latency of the finals") as progress:
            return time_finals(subject, networks, progress)
    except Unmeasured as error:
        watcher.note(f"finals are compared without latency, which cannot be measured ({error})")
        return before


def _headline(run: str, result: TrialResult, left: float, unit: Metric) -> str:
    what = (
        f"{told_share(unit, result.measured.accuracy)} on validation"
        if result.state == COMPLETE
        else f"{result.state}: {result.reason}"
    )
    return f"{run}: {what}" + (f" | about {duration(left)} left" if left else "")


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
