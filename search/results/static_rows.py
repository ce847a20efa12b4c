"""Static baselines as the closing table has them: what each is called, and how an export asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.results.comparison import Comparison

BASELINE = "baseline:"
"""What the choice of a static baseline begins with."""
LIMIT = "limit"
"""What stands for a trial's number of a baseline at the limit."""


@dataclass(frozen=True)
class StaticRow:
    """A static baseline of a comparison.

    Attributes:
        digest: of its policy, which may be another row's too.
        name: as the table has it, `lamp for trial 14` or `uniform at the limit (channel)`.
        beside: digest of the finalist at whose size it is; None at the limit.
        trial: that finalist's; None at the limit.
    """

    rule: str
    digest: str
    name: str
    beside: str | None = None
    trial: int | None = None

    @property
    def short_name(self) -> str:
        """What `--trial baseline:` calls it, `lamp@14` or `uniform@limit`."""
        return f"{self.rule}@{LIMIT if self.beside is None else self.beside if self.trial is None else self.trial}"


def finalist_name(digest: str, trial_of: Mapping[str, int]) -> str:
    """What the closing table calls a finalist, `trial 14`; `trial_of` maps its digest to its trial."""
    return f"trial {trial_of[digest]}" if digest in trial_of else digest


def static_rows(comparison: Comparison, trial_of: Mapping[str, int]) -> list[StaticRow]:
    """The static baselines of a comparison, those at finalists' sizes first; comparisons before `matched` have none of
    these.
    """
    where = f"at the limit ({comparison.granularity})" if comparison.matched else f"({comparison.granularity})"
    matched = [
        StaticRow(
            one.rule, one.digest, f"{one.rule} for {finalist_name(beside, trial_of)}", beside, trial_of.get(beside)
        )
        for beside, one in comparison.matched.items()
    ]
    at_limit = [StaticRow(rule, digest, f"{rule} {where}") for rule, digest in comparison.baselines.items()]
    return matched + at_limit
