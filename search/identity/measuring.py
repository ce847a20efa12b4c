"""Whether the earlier results of a study can be compared with new ones, if they were measured in an earlier way.

Every result says which version of measuring it came from, in `TrialResult.measuring`. Whoever changes how accuracy,
size or MACs are found raises `search.records.MEASURING`, and adds here how to tell by how much earlier results may
differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.batchnorm import LearningNorm, learning_norms
from search.errors import UsageError
from search.progress import ProgressReporter
from search.records import COMPLETE, MEASURING, FinalRecord, TrialRecord
from search.store.folder import StudyFolder
from search.training.examples import step_count
from search.workloads.base import Workload
from spaces.cost.footprint import dense_footprint, footprint
from spaces.network import Network
from spaces.wording import counted, percent

MOST_LEFT = 0.02
"""The largest share of the dense model's running statistics that may be left after a fine-tune if its score is to
differ by noise alone. In twelve fine-tunes of a small network on digits, 20 steps each, refreshing the statistics
brought 1.7 points on average with 1 % left, as it did with none left; with 12 % left it brought 6.9 points, and up to
24.
"""
APART = 0.001
"""MACs that differ by more than this share of the dense model's are shown as different numbers."""


@dataclass(frozen=True)
class Difference:
    """By what results measured in an earlier way may differ.

    Attributes:
        trials: the numbers of the trials concerned.
        finals: how many final runs are concerned.
        what: the difference, in words.
        noise: whether the difference is within that of two measurements of one network.
    """

    trials: tuple[int, ...]
    finals: int
    what: str
    noise: bool

    def __str__(self) -> str:
        return f"{_counted(self.trials, self.finals)}: {self.what}"


def settle_measuring(
    folder: StudyFolder, asked: int, workload: Workload, dense: nn.Module, network: Network, watcher: ProgressReporter
) -> None:
    """Tell by what a study's results may differ from those to come, and refuse to mix what cannot be compared.

    Args:
        asked: how many trials the study is to have; a study that already has them all is not refused.
        network: the one of the study's space, in which all policies of its results are defined.

    Raises:
        UsageError: further trials could not be compared with the existing ones.
    """
    trials, finals = folder.journal.trials(), folder.journal.finals()
    results = [*(trial.result for trial in trials), *(final.result for final in finals)]
    newest = max((result.measuring for result in results), default=MEASURING)
    if newest > MEASURING:
        raise UsageError(
            f"study {folder.name!r} has results of a later prunefront (measuring {newest}; this one knows up to "
            f"{MEASURING}): update prunefront, or name a new --study"
        )
    found = list(differences(trials, finals, workload, dense, network))
    if len(trials) < asked and (apart := [one for one in found if not one.noise]):
        raise UsageError(
            f"study {folder.name!r} was begun by an earlier prunefront, and further trials cannot be compared with "
            f"its own ({'; '.join(map(str, apart))}): name a new --study; front, status and export still read this one"
        )
    for difference in found:
        watcher.note(str(difference))


def differences(
    trials: Sequence[TrialRecord],
    finals: Sequence[FinalRecord],
    workload: Workload,
    dense: nn.Module,
    network: Network,
) -> Iterator[Difference]:
    """By what results of earlier versions may differ from results of today; nothing if they cannot differ."""
    old_trials = [trial for trial in trials if _is_of(1, trial)]
    old_finals = [final for final in finals if _is_of(1, final)]
    if (old_trials or old_finals) and (norms := learning_norms(dense)):
        yield from _scored_as_trained(old_trials, old_finals, norms, workload)
    yield from _counted_otherwise(old_trials, old_finals, network)


def _is_of(version: int, record: TrialRecord | FinalRecord) -> bool:
    return record.result.measuring == version and record.result.state == COMPLETE


def _scored_as_trained(
    trials: Sequence[TrialRecord], finals: Sequence[FinalRecord], norms: Sequence[LearningNorm], workload: Workload
) -> Iterator[Difference]:
    """Version 1 scored networks with BatchNorm's statistics as training left them, unless a late result of version 1
    says otherwise.
    """
    trials = [trial for trial in trials if trial.result.statistics is None]
    finals = [final for final in finals if final.result.statistics is None]
    if not trials and not finals:
        return
    steps = step_count(workload, workload.recipe.trial_epochs)
    if steps is None:  # of a loop of the user's own, which versions that old had not
        return
    left = max(share_left(norm, steps) for norm in norms)
    before = "scored before BatchNorm's running statistics were averaged anew for every score"
    if left <= MOST_LEFT:
        yield _of(trials, finals, f"{before}; accuracies may differ from new ones by noise", True)
    else:
        kept = f"with {percent(left, 0)} of the dense model's left after {counted(steps, 'step')}"
        yield _of(trials, finals, f"{before}, {kept}", False)


def share_left(norm: LearningNorm, steps: int) -> float:
    """Share, 0 to 1, of a norm's running statistics that still comes from before these training steps."""
    if norm.momentum is not None:
        return abs(1 - norm.momentum) ** steps
    tracked = norm.num_batches_tracked
    before = int(tracked) if isinstance(tracked, Tensor) else 0  # a plain average of all batches since the first
    return before / (before + steps)


def _counted_otherwise(
    trials: Sequence[TrialRecord], finals: Sequence[FinalRecord], network: Network
) -> Iterator[Difference]:
    """Version 1 counted only the MACs of convolutions and linear layers that are called as modules."""
    whole = dense_footprint(network).macs
    known: dict[str, float] = {}

    def differs(record: TrialRecord | FinalRecord) -> bool:
        policy = record.policy
        if policy.digest not in known:
            known[policy.digest] = footprint(network, policy).macs / whole if whole else 1.0
        return abs(record.result.measured.shares.macs - known[policy.digest]) > APART

    trials, finals = [trial for trial in trials if differs(trial)], [final for final in finals if differs(final)]
    if trials or finals:
        first = trials[0] if trials else finals[0]
        now, then = known[first.policy.digest], first.result.measured.shares.macs
        what = f"MACs as they were counted before, such as {percent(then)} for what is {percent(now)} today"
        yield _of(trials, finals, what, False)


def _of(trials: Sequence[TrialRecord], finals: Sequence[FinalRecord], what: str, noise: bool) -> Difference:
    return Difference(tuple(trial.number for trial in trials), len(finals), what, noise)


def _counted(trials: Sequence[int], finals: int) -> str:
    """`trials 0 to 5 and 6 final runs`; if the numbers have gaps, only how many trials there are."""
    first, last = (trials[0], trials[-1]) if trials else (0, 0)
    if len(trials) == 1:
        words = [f"trial {first}"]
    elif trials:
        words = [
            f"trials {first} to {last}"
            if last - first + 1 == len(trials)
            else f"{len(trials)} of trials {first} to {last}"
        ]
    else:
        words = []
    words += [counted(finals, "final run")] if finals else []
    return " and ".join(words)
