"""Fine-tunes of the recipe's final length: of which policy how many, and each on disk before the next is told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from search.executors.jobs import Job
from search.progress import duration
from search.records import COMPLETE
from search.study.loop_remarks import LoopRemarks
from search.study.running import RunningStudy
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
        besides: running seconds of what else comes between them.
    """

    def __init__(self, study: RunningStudy, left: Callable[[], int], besides: Callable[[], float]) -> None:
        self._study, self._left, self._besides = study, left, besides
        self._remarks, self._spent, self._count = LoopRemarks(study.watcher), 0.0, 0
        self._asked: dict[tuple[str, int], str] = {}

    def run(self, asked: list[Tuned]) -> None:
        """Have at least so many runs of each policy, of seeds from the study's own on, but for those that are done.

        Their time limit is a trial's, times the ratio of their epochs if that is above 1.
        """
        study = self._study
        wanted = {(one.policy.digest, study.config.seed + 1 + n): one for one in asked for n in range(one.runs)}
        self._asked = {run: one.name for run, one in wanted.items()} | self._asked
        done_before = {(final.digest, final.seed) for final in study.state.finals}
        missing = {run: one for run, one in wanted.items() if run not in done_before}
        last = self._count + max(len(missing), self._left())
        jobs = [self._job(one, seed, self._count + n, last) for n, ((_, seed), one) in enumerate(missing.items(), 1)]
        began, spent_before = study.clock.seconds, self._spent
        for job, record in study.fine_tunes(jobs, study.folder.journal.write_final):
            self._remarks.tell(job.name, record.result)
            study.state.add_final(record)
            self._count += 1
            self._spent = spent_before + study.clock.seconds - began
            left = self._spent / self._count * (last - self._count) + self._besides()
            run = f"final run {self._count}/{last} ({wanted[record.digest, record.seed].name})"
            told = f"{run}: {study.told(record.result)}"
            study.watcher.headline(told + (f" | about {duration(left)} left" if left else ""))

    def tell_failures(self) -> None:
        """Name the runs asked for that failed, and how each is repeated."""
        for final in sorted(self._study.state.finals, key=lambda final: (final.digest, final.seed)):
            if final.result.state != COMPLETE and (name := self._asked.get((final.digest, final.seed))):
                path = self._study.folder.journal.final_path(final.digest, final.seed)
                self._study.watcher.note(
                    f"the final run of {name} with seed {final.seed} failed ({final.result.reason}) and is left out "
                    f"of the means: to repeat it, delete {path} and run the same command again"
                )

    def _job(self, one: Tuned, seed: int, number: int, last: int) -> Job:
        recipe, limit = self._study.subject.workload.recipe, self._study.config.trial_timeout
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
            weights=self._study.folder.final_weights(one.policy.digest, seed),
        )
