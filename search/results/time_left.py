"""How long a study will still take, judged by what it took so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from search.config import FULL, SearchConfig
from search.records import FinalRecord, TrialRecord
from search.results.comparison import BASELINES, Comparison
from spaces.bits import FLOAT_BITS

NEAR_LIMIT = 0.9
"""A finalist of at least this share of the limit is at the limit: its own baseline stands for those there."""


class Pace:
    """How long finished trials took, added up as they finish.

    Attributes:
        trials: their number.
        spent: running seconds from their starts to their ends.
        worked: seconds of the phases of their evaluations.
        latest: the running second at which the last of them ended.
    """

    def __init__(self, trials: Iterable[TrialRecord] = ()) -> None:
        self.trials, self.spent, self.worked, self.latest = 0, 0.0, 0.0, 0.0
        for trial in trials:
            self.add(trial)

    def add(self, trial: TrialRecord) -> None:
        self.trials += 1
        self.spent += trial.finished - trial.started
        self.worked += sum(trial.result.seconds.values())
        self.latest = max(self.latest, trial.finished)

    def seconds_of(self, fine_tunes: int) -> float:
        """Seconds of work that so many fine-tunes of a trial's length are; 0 before the first trial."""
        return self.worked / self.trials * fine_tunes if self.trials else 0.0


def seconds_left(
    config: SearchConfig,
    recipe: Mapping[str, Any],
    pace: Pace,
    finals: Sequence[FinalRecord],
    final_runs: int,
    short_runs: int = 0,
) -> float | None:
    """Running seconds that a study still needs at its pace so far, finals included; None before the first finished
    trial.

    Trials end at the time limit, and as many run at once as there are workers. Before the first full-length fine-tune,
    its duration is taken to be a trial's times the ratio of their epochs.

    Args:
        recipe: of its workload, as plain data.
        pace: of its finished trials.
        final_runs: number of full-length fine-tunes still to come.
        short_runs: likewise of fine-tunes of a trial's length besides trials.
    """
    if not pace.trials:
        return None
    if finals:
        final = fmean(sum(run.result.seconds.values()) for run in finals)
    else:
        final = pace.seconds_of(1) * recipe["final_epochs"] / recipe["trial_epochs"]
    of_trials = pace.spent / pace.trials * max(config.trials - pace.trials, 0)
    if config.timeout is not None:
        of_trials = min(of_trials, max(config.timeout - pace.latest, 0.0) * config.workers)
    return (of_trials + pace.seconds_of(short_runs) + final * final_runs) / config.workers


def final_runs_left(
    config: SearchConfig, finalists: Sequence[str], finals: Sequence[FinalRecord], comparison: Comparison | None
) -> int:
    """The number of full-length fine-tunes still to come if these policies (digests) are the finalists.

    It is the smallest possible number, in which the finalist that leads after its first run goes on leading. Until a
    comparison says which baselines there are, each finalist has one of its own.
    """
    if not config.finalists or (comparison and set(finalists) <= {*comparison.finalists}):
        return 0
    repeats, count, runs = config.final_repeats, len(finalists), Counter(final.digest for final in finals)
    own = [min(runs.pop(digest, 0), repeats) for digest in finalists]
    new = own.count(0)
    if config.comparison == FULL:
        mine = sum(repeats - done for done in own)
        theirs = (new if comparison else count + len(BASELINES)) * repeats
    else:
        mine = new + max(repeats - max([1, *own]), 0) if own else 0
        theirs = new if comparison else count + repeats - 1
    return mine + (theirs if comparison else max(theirs - runs.total(), 0))


def short_runs_left(
    config: SearchConfig,
    finalists: Sequence[str],
    finals: Sequence[FinalRecord],
    comparison: Comparison | None,
    near_limit: bool = False,
    done: int = 0,
) -> int:
    """The largest possible number of fine-tunes still to come by which static rules are chosen as baselines of these
    finalists (digests), as far as it is known before the rules are fitted to a size.

    Args:
        near_limit: whether one of the finalists has a size near the limit.
        done: how many such fine-tunes there are already.
    """
    compared = set(comparison.digests) if comparison else set()
    new = [digest for digest in finalists if not comparison or digest not in comparison.finalists]
    if not (config.finalists and new) or {final.digest for final in finals} - {*finalists} - compared:
        return 0
    at_limit = 0 if comparison else len(BASELINES) * _bits_at_limit(config, near_limit)
    return max(_at_sizes(config, len(new)) + at_limit - (0 if comparison else done), 0)


def _at_sizes(config: SearchConfig, finalists: int) -> int:
    """Of the finalists' own sizes: in a paired comparison all rules once for each granularity, then one rule."""
    bits = len(config.bits) if config.mixed else 1
    if config.comparison == FULL:
        return len(BASELINES) * bits * finalists
    groups = min(finalists, len(config.granularity))
    return len(BASELINES) * bits * groups + (bits * (finalists - groups) if bits > 1 else 0)


def _bits_at_limit(config: SearchConfig, near_limit: bool) -> int:
    """At how many bits rules are tried at the limit: where one policy is left for a rule, nothing is."""
    if config.comparison == FULL:
        return len(config.bits) if len(config.bits) > 1 else 0
    if near_limit:
        return 0
    prunes = [b for b in config.bits if config.size_metric != "encoded" or b >= FLOAT_BITS * config.max_size]
    return len(prunes)  # at fewer bits, rounding alone is within the limit
