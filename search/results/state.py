"""The state of a study: its results so far, kept up one by one, and all that is asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.config import SearchConfig
from search.metric import SHARE, Metric, with_values
from search.records import COMPLETE, FINISHED_STATES, FinalRecord, TrialRecord
from search.results.comparison import Comparison
from search.results.front import Front, is_fast_enough
from search.results.selection import best_trial, is_dead
from search.results.tables import FinalScore, TrialRow, score_runs, trial_row
from search.results.tightness import Tightness, tightness
from search.results.time_left import NEAR_LIMIT, Pace, final_runs_left, seconds_left, short_runs_left


class StudyState:
    """What a study knows: of one that runs as of one that is only read.

    Taking in a result costs what the front's length does, whatever the study's.

    Args:
        config: of the study.
        recipe: of its workload, as plain data.
        max_size: the limit, if another than the study's is asked about.
        max_macs, max_latency: further limits that are asked about, see `search.results.front.is_fast_enough`.

    Attributes:
        dense_accuracy: of the dense model on validation data; None in studies last run before it was written down.
        least_accuracy: the validation accuracy asked for, if one was.
        chance: accuracy up to which networks are dead, and on no front, see `search.training.chance`; None if unknown.
        comparison: dense model, also rounded, and static baselines; None before the finals.
        unit: the metric that accuracies, which are shares, are shown in.
        records: finished trials by number.
        finals: full-length fine-tunes.
        short_runs: number of fine-tunes so far by which static baselines are chosen.
        scores: of the finals, by policy digest.
    """

    def __init__(
        self,
        config: SearchConfig,
        recipe: Mapping[str, Any],
        *,
        max_size: float | None = None,
        max_macs: float | None = None,
        max_latency: float | None = None,
        dense_accuracy: float | None = None,
        least_accuracy: float | None = None,
        chance: float | None = None,
        comparison: Comparison | None = None,
        unit: Metric = SHARE,
    ) -> None:
        self.config, self.recipe = config, recipe
        self.max_size = config.max_size if max_size is None else max_size
        self._speed_limits = max_macs, max_latency
        self.dense_accuracy, self.least_accuracy, self.chance = dense_accuracy, least_accuracy, chance
        self.comparison, self.unit = comparison, unit
        self.records: dict[int, TrialRecord] = {}
        self.finals: list[FinalRecord] = []
        self.short_runs = 0
        self.scores: dict[str, FinalScore] = {}
        self._runs: dict[str, list[FinalRecord]] = {}
        self._states: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        self._pace = Pace()
        self._front = Front(self.max_size, config.size_metric, config.cost, chance, *self._speed_limits)

    def add(self, record: TrialRecord) -> list[int]:
        """Take in a finished trial; returns the numbers that are not on the front, of it and of what it pushed off."""
        self.records[record.number] = record
        self._states[record.result.state] += 1
        if record.result.cause is not None:
            self._causes[record.result.cause] += 1
        self._pace.add(record)
        return self._front.add(record)

    def add_final(self, run: FinalRecord) -> None:
        """Take in a full-length fine-tune."""
        self.finals.append(run)
        runs = self._runs.setdefault(run.digest, [])
        runs.append(run)
        if score := score_runs(runs, self.unit):
            self.scores[run.digest] = score

    def add_all(self, trials: Iterable[TrialRecord], finals: Iterable[FinalRecord], short_runs: int = 0) -> list[int]:
        """Take in a journal; returns all numbers that are not on the front."""
        self.short_runs += short_runs
        for run in finals:
            self.add_final(run)
        return [number for record in trials for number in self.add(record)]

    def has_finals(self, number: int) -> bool:
        """Whether a full-length fine-tune of a trial's policy is there."""
        return self.final_runs(number) > 0

    def final_runs(self, number: int) -> int:
        """How many full-length fine-tunes of a trial's policy are there, failed ones included."""
        return len(self._runs.get(self.records[number].policy.digest, ()))

    def final(self, digest: str) -> FinalRecord | None:
        """The full-length fine-tune of median validation accuracy of a policy; None without its scores."""
        if digest not in self.scores:
            return None
        return next(run for run in self._runs[digest] if run.seed == self.scores[digest].best_seed)

    def row(self, number: int) -> TrialRow:
        """One finished trial."""
        record = self.records[number]
        return trial_row(record, self.scores.get(record.policy.digest), self.config.size_metric)

    @property
    def rows(self) -> list[TrialRow]:
        """All finished trials by number."""
        return [self.row(number) for number in sorted(self.records)]

    @property
    def front_length(self) -> int:
        return len(self._front.numbers)

    @property
    def front(self) -> list[TrialRow]:
        """Trials within the limit that no other beats in accuracy, size and cost at once, and that are not dead.

        Equal points stay together; by falling accuracy, then rising size.
        """
        return [self.row(number) for number in self._front.finalists(self.front_length)]

    def finalists(self, count: int) -> list[int]:
        """Trials to fine-tune at full length: the most accurate of the front, by falling accuracy.

        With `least_accuracy` they are the smallest at least that accurate; the most accurate if none is.
        """
        return self._front.finalists(count, self.least_accuracy)

    @property
    def best(self) -> int | None:
        """The trial `export --trial best` ships, see `search.results.selection.best_trial`.

        A trial that has finals only because a static baseline has its policy is left out: the study did not choose it.
        """
        static = {one.digest for one in self.comparison.static} if self.comparison else set()
        compared = static - {*self.comparison.finalists} if self.comparison else static
        tuned = [
            self.row(number)
            for number, record in sorted(self.records.items())
            if self._is_tuned(record) and (record.policy.digest not in compared or number in self._front.numbers)
        ]
        return best_trial(self.front, tuned, self.least_accuracy, self.chance)

    def _is_tuned(self, record: TrialRecord) -> bool:
        """Whether a trial within the limit has finals; a failed one can have a finalist's policy."""
        return record.policy.digest in self.scores and self._is_within(record, self.max_size)

    def _is_within(self, record: TrialRecord, limit: float) -> bool:
        result, cost = record.result, record.result.shares
        is_small = result.state == COMPLETE and cost is not None and cost.of(self.config.size_metric) <= limit
        return is_small and is_fast_enough(record, *self._speed_limits)

    def dead_within(self, limit: float) -> int:
        """How many complete trials of at most this size are on no front because they are dead."""
        dead = (r for r in self.records.values() if is_dead(r.result.accuracy, self.chance))
        return sum(self._is_within(record, limit) for record in dead)

    @property
    def dense_scores(self) -> dict[str, float | None]:
        """`dense_accuracy`, and `dense_value` where the study's metric has a unit of its own, as JSON has them."""
        found: dict[str, float | None] = with_values({"dense_accuracy": self.dense_accuracy}, self.unit)
        return found

    @property
    def is_fruitless(self) -> bool:
        """Whether no trial is complete."""
        return not self._states[COMPLETE]

    def counts(self, running: int = 0, waiting: int = 0) -> dict[str, int]:
        """Trials by state."""
        return {state: self._states[state] for state in FINISHED_STATES} | {"running": running, "waiting": waiting}

    @property
    def reasons(self) -> dict[str, int]:
        """Trials by the reason why they are not complete."""
        reasons = (self.records[number].result.reason for number in sorted(self.records))
        return dict(Counter(reason for reason in reasons if reason is not None))

    @property
    def failures(self) -> dict[str, int]:
        """Failed trials by cause, the most frequent first."""
        return dict(self._causes.most_common())

    @property
    def tightness(self) -> Tightness | None:
        """How near the files of trials and finals come to their bounds; None where no weights are rounded."""
        of_trials = [record.result for record in self.records.values()]
        return tightness(of_trials + [run.result for run in self.finals])

    @property
    def seconds_left(self) -> float | None:
        """Running seconds the study still needs, finals of as many finalists as the front has now included.

        It is judged by the study's pace so far; None before its first trial. Where the trials are done and none is on
        the front, no finals follow.
        """
        trials_left = seconds_left(self.config, self.recipe, self._pace, self.finals, 0)
        if not (trials_left or self.front_length):
            return trials_left
        finalists = self.finalists(self.config.finalists)
        digests = [self.records[number].policy.digest for number in finalists]
        runs = final_runs_left(self.config, digests, self.finals, self.comparison)
        short = self.short_runs_left(finalists)
        return seconds_left(self.config, self.recipe, self._pace, self.finals, runs, short)

    def short_runs_left(self, finalists: Sequence[int]) -> int:
        """The largest possible number of fine-tunes still to come by which the baselines of these trials are chosen."""
        records = [self.records[number] for number in finalists]
        near = any(record.target >= NEAR_LIMIT * self.config.max_size for record in records)
        digests = [record.policy.digest for record in records]
        return short_runs_left(self.config, digests, self.finals, self.comparison, near, self.short_runs)

    def seconds_of_short_runs(self, count: int) -> float:
        """Running seconds of so many of them, at the pace of the trials so far."""
        return self._pace.seconds_of(count) / self.config.workers

    @property
    def last_second(self) -> float:
        """The running second at which the last result was there; 0 before the first."""
        return max([self._pace.latest, *(run.finished for run in self.finals)])
