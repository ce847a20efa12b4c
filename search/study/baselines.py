"""Static allocations at the limit, each at those of the study's bits that do best on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from search.config import SearchConfig
from search.executors.dispatch import evaluations
from search.executors.jobs import Executor, Job
from search.metric import told_share
from search.progress import ProgressReporter
from search.records import COMPLETE, FinalRecord
from search.results.comparison import BASELINES
from search.results.state import StudyState
from search.store.folder import StudyFolder
from search.study.clock import StudyClock
from search.training.attempts import Attempt
from search.training.evaluate import PreparedModel
from spaces.allocation.budget import Unreachable
from spaces.cost.effect import fine_tune_key
from spaces.policy import PruningPolicy
from spaces.search_space.initial import allocated
from spaces.search_space.projection import Projector


def static_candidates(projector: Projector, name: str) -> list[PruningPolicy]:
    """The policies of a static allocation at the limit, one for each of the study's bits at which it reaches it."""
    space, found = projector.space, []
    for bits in space.bits:
        try:
            found.append(allocated(space, name, space.size_range[1], space.usable[0], projector.inputs, bits))
        except Unreachable:
            continue
    return found


def baseline_choices(projector: Projector, finalists: Sequence[PruningPolicy]) -> dict[str, list[PruningPolicy]]:
    """Static allocations at the limit, by name, each at all bits at which it reaches it, from the most on.

    One that does the same as a finalist or an earlier one is replaced by that policy, so that it is tuned once.
    """
    network = projector.space.network
    known = {fine_tune_key(network, policy): policy for policy in reversed(finalists)}
    choices = {}
    for name in BASELINES:
        found = static_candidates(projector, name)
        ours = [known.setdefault(fine_tune_key(network, one), one) for one in found]
        choices[name] = list({one.digest: one for one in ours}.values())
    return choices


def best_baselines(
    choices: Mapping[str, Sequence[PruningPolicy]], accuracies: Mapping[str, float]
) -> dict[str, PruningPolicy]:
    """Of each static allocation that reaches the limit the one of highest accuracy (by digest), ties by more bits."""
    return {name: max(ones, key=lambda one: accuracies.get(one.digest, 0.0)) for name, ones in choices.items() if ones}


class ShortRuns:
    """Fine-tunes of a trial's length, of static allocations; each is on disk once it is done, and is not repeated.

    One that does the same as a complete trial of the study has that trial's accuracy.
    """

    def __init__(
        self,
        config: SearchConfig,
        folder: StudyFolder,
        subject: PreparedModel,
        state: StudyState,
        clock: StudyClock,
        watcher: ProgressReporter,
        executor: Executor,
    ) -> None:
        self._executor = executor
        self._config, self._folder, self._subject = config, folder, subject
        self._clock, self._watcher, self._trials, self._unit = clock, watcher, state.records, state.unit
        self._done = {run.digest: run for run in folder.journal.short_runs()}

    def accuracies(self, choices: Mapping[str, Sequence[PruningPolicy]]) -> dict[str, float]:
        """Digest -> accuracy on validation data, -1 if the fine-tune failed, of all policies among which there is a
        choice.
        """
        asked = {one.digest: (name, one) for name, ones in choices.items() if len(ones) > 1 for one in ones}
        of_trials = self._of_trials(one for _, one in asked.values())
        missing = {key: what for key, what in asked.items() if key not in of_trials and key not in self._done}
        self._run(missing)
        ours = {key: self._done[key].result.accuracy for key in asked if key not in of_trials}
        return of_trials | {key: -1.0 if accuracy is None else accuracy for key, accuracy in ours.items()}

    def _of_trials(self, policies: Iterable[PruningPolicy]) -> dict[str, float]:
        """Digest -> accuracy of those that a complete trial of the study had."""
        network = self._subject.network
        complete = (trial for trial in self._trials.values() if trial.result.state == COMPLETE)
        known = {fine_tune_key(network, one.policy): one.result.measured.accuracy for one in complete}
        found = {policy.digest: known.get(fine_tune_key(network, policy)) for policy in policies}
        return {key: accuracy for key, accuracy in found.items() if accuracy is not None}

    def _run(self, missing: Mapping[str, tuple[str, PruningPolicy]]) -> None:
        config, folder = self._config, self._folder.journal.folder
        jobs = [self._job(name, policy) for name, policy in missing.values()]
        for done in evaluations(self._executor, iter(jobs), folder, config.attempts, self._watcher.note):
            policy, result = done.job.policy, done.result
            scored = result, None, None, self._clock.seconds, done.worker
            record = FinalRecord(policy.digest, config.seed, policy, *scored)
            self._folder.journal.write_short_run(record)
            Attempt(folder, done.job.key).finish()
            self._done[policy.digest] = record
            said = f"{result.state}: {result.reason}"
            if result.state == COMPLETE:
                said = f"{told_share(self._unit, result.measured.accuracy)} on validation"
            self._watcher.headline(f"{done.job.label}: {said}")

    def _job(self, name: str, policy: PruningPolicy) -> Job:
        return Job(
            key=f"static-{policy.digest}",
            name=f"baseline {name}, {policy.bits_label}",
            label=f"baseline {name}, {policy.bits_label}",
            policy=policy,
            epochs=self._subject.workload.recipe.trial_epochs,
            seed=self._config.seed,
            limit=self._config.trial_timeout,
        )
