"""The parts of a running study that fine-tunes besides its trials need: one asks for them and keeps what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from search.config import SearchConfig
from search.executors.dispatch import evaluations
from search.executors.jobs import Executor, Job
from search.metric import told_share
from search.progress import ProgressReporter
from search.records import COMPLETE, FinalRecord, TrialResult
from search.results.state import StudyState
from search.store.folder import StudyFolder
from search.study.clock import StudyClock
from search.training.attempts import Attempt
from search.training.evaluate import PreparedModel


@dataclass(frozen=True)
class RunningStudy:
    """What is asked of a study, where it is kept, what it prunes, knows and runs on, and who watches it."""

    config: SearchConfig
    folder: StudyFolder
    subject: PreparedModel
    state: StudyState
    clock: StudyClock
    watcher: ProgressReporter
    executor: Executor

    def fine_tunes(
        self, jobs: Iterable[Job], write: Callable[[FinalRecord], None]
    ) -> Iterator[tuple[Job, FinalRecord]]:
        """Carry out jobs; each record is written, and its weights are kept, before the next is waited for."""
        journal, note = self.folder.journal.folder, self.watcher.note
        for done in evaluations(self.executor, iter(jobs), journal, self.config.attempts, note):
            job, tested = done.job, done.tested
            if not done.keep_weights():
                note(f"the weights of {job.name} are gone with their node: export repeats it")
            accuracy, loss = (tested.accuracy, tested.loss) if tested else (None, None)
            scored = done.result, accuracy, loss, self.clock.seconds, done.worker
            record = FinalRecord(job.policy.digest, job.seed, job.policy, *scored)
            write(record)
            Attempt(journal, job.key).finish()
            yield job, record

    def told(self, result: TrialResult) -> str:
        """What came of a fine-tune, in words."""
        if result.state == COMPLETE:
            return f"{told_share(self.state.unit, result.measured.accuracy)} on validation"
        return f"{result.state}: {result.reason}"
