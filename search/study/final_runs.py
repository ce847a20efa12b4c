"""Fine-tunes of the recipe's final length: of which policy how many, and each on disk before the next is told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from search.config import SearchConfig
from search.executors.dispatch import evaluations
from search.executors.jobs import Executor, Job
from search.metric import Metric, told_share
from search.progress import ProgressReporter, duration
from search.records import COMPLETE, FinalRecord, TrialResult
from search.results.state import StudyState
from search.store.folder import StudyFolder
from search.study.clock import StudyClock
from search.study.loop_remarks import LoopRemarks
from search.training.attempts import Attempt
from search.training.evaluate import PreparedModel
from search.workloads.run import FINAL
from spaces.policy import PruningPolicy


@dataclass(frozen=True)
class Tuned:
    """A policy that is fine-tuned at full length: what it is called, and with how many seeds."""

    name: str
    policy: PruningPolicy
    runs: int


class FinalRuns:
    """Full-length fine-tunes of a study; each is on disk once it is done, and is not repeated.

    Args:
        left: how many runs are still to come at least, as far as is known.
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
        left: Callable[[], int],
    ) -> None:
        self._config, self._folder, self._subject, self._state = config, folder, subject, state
        self._clock, self._watcher, self._executor, self._left = clock, watcher, executor, left
        self._remarks, self._began, self._count = LoopRemarks(watcher), clock.seconds, 0
        self._asked: dict[tuple[str, int], str] = {}

    def run(self, asked: list[Tuned]) -> None:
        """Have at least so many runs of each policy, of seeds from the study's own on, but for those that are done.

        Their time limit is a trial's, times the ratio of their epochs if that is above 1.
        """
        wanted = {(one.policy.digest, self._config.seed + 1 + n): one for one in asked for n in range(one.runs)}
        self._asked = {run: one.name for run, one in wanted.items()} | self._asked
        done_before = {(final.digest, final.seed) for final in self._state.finals}
        missing = {run: one for run, one in wanted.items() if run not in done_before}
        last = self._count + max(len(missing), self._left())
        jobs = [self._job(one, seed, self._count + n, last) for n, ((_, seed), one) in enumerate(missing.items(), 1)]
        names = {job.key: one.name for job, one in zip(jobs, missing.values(), strict=True)}
        attempts, journal = self._config.attempts, self._folder.journal
        for done in evaluations(self._executor, iter(jobs), journal.folder, attempts, self._watcher.note):
            job = done.job
            self._remarks.tell(job.name, done.result)
            if not done.keep_weights():
                self._watcher.note(f"the weights of {job.name} are gone with their node: export repeats it")
            accuracy, loss = (done.tested.accuracy, done.tested.loss) if done.tested else (None, None)
            scored = done.result, accuracy, loss, self._clock.seconds, done.worker
            record = FinalRecord(job.policy.digest, job.seed, job.policy, *scored)
            journal.write_final(record)
            Attempt(journal.folder, job.key).finish()
            self._state.add_final(record)
            self._count += 1
            left = (self._clock.seconds - self._began) / self._count * (last - self._count)
            run = f"final run {self._count}/{last} ({names[job.key]})"
            self._watcher.headline(_headline(run, done.result, left, self._state.unit))

    def tell_failures(self) -> None:
        """Name the runs asked for that failed, and how each is repeated."""
        for final in sorted(self._state.finals, key=lambda final: (final.digest, final.seed)):
            if final.result.state != COMPLETE and (name := self._asked.get((final.digest, final.seed))):
                path = self._folder.journal.final_path(final.digest, final.seed)
                self._watcher.note(
                    f"the final run of {name} with seed {final.seed} failed ({final.result.reason}) and is left out "
                    f"of the means: to repeat it, delete {path} and run the same command again"
                )

    def _job(self, one: Tuned, seed: int, number: int, last: int) -> Job:
        recipe, limit = self._subject.workload.recipe, self._config.trial_timeout
        if limit is not None:
            limit *= max(recipe.final_epochs / recipe.trial_epochs, 1)
        return Job(
            key=f"{one.policy.digest}-{seed}",
            name=f"the final run of {one.name} with seed {seed}",
            label=f"final run {number}/{last} ({one.name}, seed {seed})",
            policy=one.policy,
            epochs=recipe.final_epochs,
            seed=seed,
            stage=FINAL,
            limit=limit,
            is_tested=True,
            weights=self._folder.final_weights(one.policy.digest, seed),
        )


def _headline(run: str, result: TrialResult, left: float, unit: Metric) -> str:
    what = (
        f"{told_share(unit, result.measured.accuracy)} on validation"
        if result.state == COMPLETE
        else f"{result.state}: {result.reason}"
    )
    return f"{run}: {what}" + (f" | about {duration(left)} left" if left else "")
