"""What a study says of fine-tunes by the user's own loop, which its tables do not show."""

from __future__ import annotations

from search.progress import ProgressReporter
from search.records import TrialResult
from spaces.wording import percent

RESTORED = (
    "pruned weights were not zero when train ended, and are set to zero again: an average of weights, and those from "
    "before the masks were final (run.settled), hold such"
)
ENDED = (
    "of its training, before its schedule did: what was left of that was done at once, with no training after it; let "
    "train take all of run.steps, or say how many there are by run.begin(steps=)"
)


class LoopRemarks:
    """Tells each of them once, of the first fine-tune that it holds of; the records of the others hold it too."""

    def __init__(self, watcher: ProgressReporter) -> None:
        self._watcher, self._told = watcher, set[str]()

    def tell(self, what: str, result: TrialResult) -> None:
        """Tell what holds of a result; `what` names its fine-tune, such as `trial 3`."""
        if result.restored:
            self._once(RESTORED, f"{what}: {result.restored} {RESTORED}")
        if result.ended_at is not None:
            self._once(ENDED, f"{what}: train ended after {percent(result.ended_at, 0)} {ENDED}")

    def _once(self, remark: str, said: str) -> None:
        if remark not in self._told:
            self._told.add(remark)
            self._watcher.note(f"{said} (told once; see restored and ended_at in the records)")
