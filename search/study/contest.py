"""Which policies are tuned at full length and how often: finalists, and the static rules they are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from search.config import FULL, SearchConfig
from search.records import TrialRecord
from search.results.comparison import Baseline, Comparison
from search.results.state import StudyState
from search.results.time_left import final_runs_left
from search.study.baselines import (
    Rival,
    best_rival,
    informative,
    known_alike,
    matched_granularity,
    matched_rivals,
    rivals_at_limit,
)
from search.study.final_runs import Tuned
from spaces.cost.effect import fine_tune_key
from spaces.search_space.projection import Projector

Accuracies = Callable[[Iterable[Rival]], Mapping[str, float]]
"""Scores policies, by digest, after short fine-tunes on validation data."""


class Contest:
    """Finalists of a study and their static baselines. What is decided, validation data decide.

    Each finalist is tuned once. Then the one that leads (`StudyState.best`) is tuned with further seeds, until it has
    `final_repeats` runs; if another leads by then, so is that one. Whoever is the best at the end has all runs. Its
    baseline gets as many, those of the others one. Trials that somebody named get all runs, as all policies do in a
    `full` comparison, which also has every static rule at the limit. Whoever was a finalist before and is still on the
    front stays one beside the same baseline, if both have the runs of one that does not lead.

    Args:
        named: trials that are finalists whatever the front says.
        known: what was compared before; who was named then still is, and other finalists stay that need no run.
    """

    def __init__(
        self,
        config: SearchConfig,
        projector: Projector,
        state: StudyState,
        named: Sequence[int] = (),
        known: Comparison | None = None,
    ) -> None:
        self._config, self._projector, self._state = config, projector, state
        self._is_full = config.comparison == FULL
        number_of = {record.policy.digest: number for number, record in sorted(state.records.items(), reverse=True)}
        before = [number_of[digest] for digest in (known.named if known else ()) if digest in number_of]
        chosen = state.finalists(config.finalists)
        if named and known is not None:
            chosen = [number_of[digest] for digest in known.finalists if digest in number_of]
        elif named:
            chosen = []
        self._named = list(dict.fromkeys([*before, *named]))
        earlier = {number_of[digest]: digest for digest in (known.finalists if known else ()) if digest in number_of}
        earlier = {number: digest for number, digest in earlier.items() if number not in {*chosen, *self._named}}
        self._kept = self._that_need_no_run(earlier, known.matched if known else {})
        self.finalists = list(dict.fromkeys([*chosen, *self._kept, *self._named]))
        self._matched: dict[int, Rival] = {}
        self._at_limit: list[Rival] = []

    def _that_need_no_run(self, earlier: Mapping[int, str], matched: Mapping[str, Baseline]) -> dict[int, Rival | None]:
        """Those of earlier finalists (number -> digest) on the front that have their runs, and whose baseline has its
        own; None for a baseline where no rule reaches their size.
        """
        runs, least = Counter(run.digest for run in self._state.finals), self._repeats(False)
        policies = {run.digest: run.policy for run in self._state.finals}
        front = {row.trial for row in self._state.front}
        found: dict[int, Rival | None] = {}
        for number, digest in earlier.items():
            if number not in front or digest not in self._state.scores or runs[digest] < least:
                continue
            if own := matched.get(digest):
                if runs[own.digest] >= least:
                    found[number] = Rival(own.rule, policies[own.digest])
            elif not matched_rivals(self._projector, self._state.records[number]):
                found[number] = None
        return found

    def undecided(self) -> list[Tuned]:
        """The runs of finalists that are needed next; none once it is decided which is the best."""
        least = {number: self._repeats(number in self._named) for number in self.finalists}
        if lacking := [number for number, runs in least.items() if self._state.final_runs(number) < runs]:
            return [self._tuned(number, least[number]) for number in lacking]
        leader = self._state.best
        if leader is None or not self._state.has_finals(leader):
            return []
        if leader not in self.finalists:
            self.finalists.append(leader)
        repeats = self._config.final_repeats
        return [self._tuned(leader, repeats)] if self._state.final_runs(leader) < repeats else []

    def choose_baselines(self, accuracies: Accuracies) -> None:
        """Take the best static rule at each finalist's size, and at the limit where that says more.

        Which rule is the best is asked once for each granularity, at the size of the finalist that leads in it, but in
        a full comparison of each finalist.

        Args:
            accuracies: digest -> accuracy on validation data of policies among which there is a choice.
        """
        network, best = self._projector.space.network, self._state.best
        trials = [self._state.records[number] for number in self.finalists]
        before = [rival.policy for rival in self._kept.values() if rival]
        policies = [*before, *(trial.policy for trial in reversed(trials))]
        known = {fine_tune_key(network, policy): policy for policy in policies}
        rules: dict[str, str] = {}
        self._matched = {}
        kept = {number: rival for number, rival in self._kept.items() if number != best}
        for trial in sorted((one for one in trials if one.number not in kept), key=lambda one: one.number != best):
            rivals = known_alike(network, matched_rivals(self._projector, trial), known)
            granularity = matched_granularity(self._projector, trial)
            if not self._is_full:
                rivals = [one for one in rivals if one.rule == rules.get(granularity)] or rivals
            if rivals:
                self._matched[trial.number] = found = _winner(rivals, accuracies)
                rules[granularity] = found.rule
        self._matched |= {number: rival for number, rival in kept.items() if rival}
        at_limit = [known_alike(network, rivals, known) for rivals in self._contests_at_limit(trials)]
        self._at_limit = [_winner(rivals, accuracies) for rivals in at_limit if rivals]

    def _contests_at_limit(self, trials: Sequence[TrialRecord]) -> list[list[Rival]]:
        """One of all rules; in a full comparison one for the bits of each."""
        rivals = rivals_at_limit(self._projector)
        if not self._is_full:
            return [informative(self._projector, rivals, [trial.target for trial in trials])]
        rules = dict.fromkeys(rival.rule for rival in rivals)
        return [[rival for rival in rivals if rival.rule == rule] for rule in rules]

    @property
    def standing(self) -> tuple[tuple[int, ...], int | None]:
        """Who the finalists are, and which leads; baselines follow from both, but for a lead that is undecided."""
        return tuple(self.finalists), None if self.undecided() else self._state.best

    @property
    def baselines(self) -> list[Tuned]:
        """The runs of static rules."""
        best, rest = self._state.best, self._repeats(False)
        found = [
            Tuned(f"{rule} for trial {number}", policy, self._repeats(number == best or number in self._named))
            for number, (rule, policy) in self._matched.items()
        ]
        return found + [Tuned(f"{rule} at the limit", policy, rest) for rule, policy in self._at_limit]

    @property
    def runs_left(self) -> int:
        """How many full-length runs are still to come at least; 0 once baselines are chosen, whose runs are known."""
        if self._matched:
            return 0
        digests = [self._state.records[number].policy.digest for number in self.finalists]
        return final_runs_left(self._config, digests, self._state.finals, None)

    @property
    def short_seconds_left(self) -> float:
        """At most how long the fine-tunes still take by which baselines are chosen; 0 once they are."""
        if self._matched:
            return 0.0
        return self._state.seconds_of_short_runs(self._state.short_runs_left(self.finalists))

    @property
    def comparison(self) -> Comparison:
        """Who is compared with whom, without references."""
        digest_of = {number: self._state.records[number].policy.digest for number in self.finalists}
        bits = {rule: policy.bits for rule, policy in self._at_limit if isinstance(policy.bits, int)}
        return Comparison(
            references={},
            baselines={rule: policy.digest for rule, policy in self._at_limit},
            granularity=self._projector.space.usable[0],
            finalists=tuple(digest_of.values()),
            bits=bits,
            matched={digest_of[n]: Baseline(rule, policy.digest) for n, (rule, policy) in self._matched.items()},
            named=tuple(digest_of[number] for number in self._named),
        )

    def _repeats(self, with_all: bool) -> int:
        return self._config.final_repeats if with_all or self._is_full else 1

    def _tuned(self, number: int, runs: int) -> Tuned:
        return Tuned(f"trial {number}", self._state.records[number].policy, runs)


def _winner(rivals: Sequence[Rival], accuracies: Accuracies) -> Rival:
    """The best of them; where all are one policy, nothing is trained to tell."""
    differ = len({rival.policy.digest for rival in rivals}) > 1
    return best_rival(rivals, accuracies(rivals) if differ else {})
