"""Static allocations that finalists are compared with, those that do best on validation data after short fine-tunes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from search.executors.jobs import Job
from search.records import COMPLETE, TrialRecord
from search.results.comparison import BASELINES
from search.results.time_left import NEAR_LIMIT
from search.study.running import RunningStudy
from spaces.allocation.budget import Unreachable
from spaces.cost.effect import asked_layers, fine_tune_key
from spaces.network import Network
from spaces.policy import PruningPolicy
from spaces.search_space.initial import allocated
from spaces.search_space.projection import Projector


class Rival(NamedTuple):
    """A static rule, and a policy that it comes to."""

    rule: str
    policy: PruningPolicy


def rivals_at(projector: Projector, size: float, granularity: str, bits: Iterable[int]) -> list[Rival]:
    """What static rules come to at a size, a share of the dense model, each at those of the bits at which it can have
    that size.
    """
    found, bits = [], tuple(bits)
    for rule in BASELINES:
        for one in bits:
            try:
                policy = allocated(projector.space, rule, size, granularity, projector.inputs, one)
            except Unreachable:
                continue
            found.append(Rival(rule, policy))
    return found


def matched_granularity(projector: Projector, trial: TrialRecord) -> str:
    """The granularity of static rules beside a finalist: its own, or the study's first where its layers differ."""
    own = trial.policy.granularity
    return own if isinstance(own, str) else projector.space.usable[0]


def matched_rivals(projector: Projector, trial: TrialRecord) -> list[Rival]:
    """Static rules at a finalist's own size, granularity and bits; where its layers differ in bits, at all of the
    study's.
    """
    bits = (trial.policy.bits,) if isinstance(trial.policy.bits, int) else projector.space.bits
    return rivals_at(projector, trial.target, matched_granularity(projector, trial), bits)


def rivals_at_limit(projector: Projector) -> list[Rival]:
    """Static rules at the limit, each at all of the study's bits, from the most on."""
    space = projector.space
    return rivals_at(projector, space.size_range[1], space.usable[0], space.bits)


def informative(projector: Projector, rivals: Iterable[Rival], sizes: Iterable[float]) -> list[Rival]:
    """Those of static rules at the limit that say more than other rows do: none where a finalist's size (`sizes`) is
    near the limit, and none that only rounds, as the dense model's roundings are compared anyway.
    """
    if any(size >= NEAR_LIMIT * projector.space.size_range[1] for size in sizes):
        return []
    return [rival for rival in rivals if asked_layers(rival.policy)]


def known_alike(network: Network, rivals: Iterable[Rival], known: dict[str, PruningPolicy]) -> list[Rival]:
    """The same rivals, where a policy that does what an earlier one does is replaced by that one, so that it is tuned
    once; `known` are policies by what they do (`fine_tune_key`), and takes these in.
    """
    return [Rival(rule, known.setdefault(fine_tune_key(network, policy), policy)) for rule, policy in rivals]


def best_rival(rivals: Sequence[Rival], accuracies: Mapping[str, float]) -> Rival:
    """The rival of highest accuracy (by digest); of equals the first."""
    return max(rivals, key=lambda rival: accuracies.get(rival.policy.digest, 0.0))


class ShortRuns:
    """Fine-tunes of a trial's length, of static allocations; each is on disk once it is done, and is not repeated.

    One that does the same as a complete trial of the study has that trial's accuracy.
    """

    def __init__(self, study: RunningStudy) -> None:
        self._study = study
        self._done = {run.digest: run for run in study.folder.journal.short_runs()}

    def accuracies(self, rivals: Iterable[Rival]) -> dict[str, float]:
        """Digest -> accuracy of these policies on validation data, -1 if the fine-tune failed."""
        asked = {rival.policy.digest: rival for rival in rivals}
        of_trials = self._of_trials(rival.policy for rival in asked.values())
        self._run([rival for key, rival in asked.items() if key not in of_trials and key not in self._done])
        ours = {key: self._done[key].result.accuracy for key in asked if key not in of_trials}
        return of_trials | {key: -1.0 if accuracy is None else accuracy for key, accuracy in ours.items()}

    def _of_trials(self, policies: Iterable[PruningPolicy]) -> dict[str, float]:
        """Digest -> accuracy of those that a complete trial of the study had."""
        network = self._study.subject.network
        complete = (trial for trial in self._study.state.records.values() if trial.result.state == COMPLETE)
        known = {fine_tune_key(network, one.policy): one.result.measured.accuracy for one in complete}
        found = {policy.digest: known.get(fine_tune_key(network, policy)) for policy in policies}
        return {key: accuracy for key, accuracy in found.items() if accuracy is not None}

    def _run(self, missing: Iterable[Rival]) -> None:
        jobs = [self._job(*rival) for rival in missing]
        for job, record in self._study.fine_tunes(jobs, self._study.folder.journal.write_short_run):
            self._done[record.digest] = record
            self._study.state.short_runs += 1
            self._study.watcher.headline(f"{job.label}: {self._study.told(record.result)}")

    def _job(self, rule: str, policy: PruningPolicy) -> Job:
        label = ", ".join(filter(None, [f"baseline {rule}", policy.bits_label]))
        return Job(
            key=f"static-{policy.digest}",
            name=label,
            label=label,
            policy=policy,
            epochs=self._study.subject.workload.recipe.trial_epochs,
            seed=self._study.config.seed,
            limit=self._study.config.trial_timeout,
        )
