"""Static allocations at the limit, each at those of the study's bits that do best on validation data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.config import SearchConfig
from search.metric import told_share
from search.progress import ProgressReporter
from search.records import COMPLETE, FinalRecord
from search.results.comparison import BASELINES
from search.results.state import StudyState
from search.store.folder import StudyFolder
from search.study.clock import StudyClock
from search.training.attempts import Attempt, give_up_on
from search.training.evaluate import PreparedModel, evaluate_policy, failed
from spaces.allocation.budget import Unreachable
from spaces.cost.effect import fine_tune_key
from spaces.policy import PruningPolicy
from spaces.search_space.initial import allocated
from spaces.search_space.projection import Projector

Accuracy = Callable[[str, PruningPolicy], float]
"""Name and policy of a static allocation -> accuracy on validation data after a trial's fine-tune; -1 if it failed."""


def static_candidates(projector: Projector, name: str) -> list[PruningPolicy]:
    """The policies of a static allocation at the limit, one for each of the study's bits at which it reaches it."""
    space, found = projector.space, []
    for bits in space.bits:
        try:
            found.append(allocated(space, name, space.size_range[1], space.usable[0], projector.inputs, bits))
        except Unreachable:
            continue
    return found


def baseline_policies(
    projector: Projector, finalists: Sequence[PruningPolicy], accuracy_of: Accuracy
) -> dict[str, PruningPolicy]:
    """Static allocations at the limit, by name, each at the bits of highest accuracy, ties by more bits.

    One that does the same as a finalist or an earlier one is replaced by that policy, so that it is tuned once.
    Accuracies are asked for only where there is a choice.
    """
    network = projector.space.network
    known = {fine_tune_key(network, policy): policy for policy in reversed(finalists)}
    policies = {}
    for name in BASELINES:
        found = static_candidates(projector, name)
        ours = [known.setdefault(fine_tune_key(network, one), one) for one in found]
        choices = list({one.digest: one for one in ours}.values())
        if choices:
            accuracies = [accuracy_of(name, one) for one in choices] if len(choices) > 1 else [0.0]
            policies[name] = choices[accuracies.index(max(accuracies))]
    return policies


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
    ) -> None:
        self._config, self._folder, self._subject = config, folder, subject
        self._clock, self._watcher, self._trials, self._unit = clock, watcher, state.records, state.unit
        self._done = {run.digest: run for run in folder.journal.short_runs()}
        self._of_trials: dict[str, float] | None = None

    def accuracy_of(self, name: str, policy: PruningPolicy) -> float:
        """Accuracy on validation data; -1 if the fine-tune failed."""
        if (known := self._known(policy)) is not None:
            return known
        if policy.digest not in self._done:
            self._run(name, policy)
        accuracy = self._done[policy.digest].result.accuracy
        return -1.0 if accuracy is None else accuracy

    def _known(self, policy: PruningPolicy) -> float | None:
        network = self._subject.network
        if self._of_trials is None:
            complete = (trial for trial in self._trials.values() if trial.result.state == COMPLETE)
            self._of_trials = {fine_tune_key(network, one.policy): one.result.measured.accuracy for one in complete}
        return self._of_trials.get(fine_tune_key(network, policy))

    def _run(self, name: str, policy: PruningPolicy) -> None:
        seed, limit = self._config.seed, self._config.trial_timeout
        attempt = Attempt(self._folder.journal.folder, f"static-{policy.digest}")
        what = f"baseline {name}, {policy.bits_label}"
        if reason := attempt.failure:
            evaluation = failed(reason)
        else:
            with self._watcher.stage(what) as progress, attempt.running(progress) as step:
                epochs = self._subject.workload.recipe.trial_epochs
                evaluation = evaluate_policy(
                    self._subject, policy, epochs, seed, step, seconds=limit, give_up=give_up_on(attempt, what, limit)
                )
        record = FinalRecord(policy.digest, seed, policy, evaluation.result, None, None, self._clock.seconds)
        self._folder.journal.write_short_run(record)
        attempt.finish()
        self._done[policy.digest] = record
        result = record.result
        said = f"{result.state}: {result.reason}"
        if result.state == COMPLETE:
            said = f"{told_share(self._unit, result.measured.accuracy)} on validation"
        self._watcher.headline(f"{what}: {said}")
