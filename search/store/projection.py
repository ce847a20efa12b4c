"""A record of a study outside of its folder: it follows from the journal, and can always be made anew from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from search.errors import EnvironmentProblem
from search.records import TrialRecord


class Summary(NamedTuple):
    """What is known of a study as a whole when it has ended.

    Attributes:
        metrics: by name.
        files: name -> content.
        note: Markdown that a person reads first.
    """

    metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    note: str


class Projection(Protocol):
    """One study as another program keeps it, written by one thread alone.

    Until it is known which trials are there, none is logged, so that nothing is ever logged twice. `match` looks, and
    repairs what it finds; after a failure, `forget` makes it unknown again. Every method but `forget` may raise
    whatever the other program's library raises.

    Attributes:
        title: the other program, as a person calls it.
        key: of the study, in this program.
        attempts: how often something is written before that counts as a failure.
        records: what it is to hold: finished trials by number.
        params: the study's settings.
        summary: what the study is still to get.
        logged: trials that are known to be there; None while that is unknown.
    """

    title: str
    key: str
    attempts: int
    records: dict[int, TrialRecord]
    params: dict[str, Any]
    summary: Summary | None
    logged: set[int] | None

    def match(self) -> None:
        """Make all that is there of this study equal to the journal; what is lacking is missing still."""

    def forget(self) -> None:
        """It is unknown again what is there."""

    def missing(self) -> list[int]:
        """Trials that are known to be lacking."""

    def log(self, number: int) -> None:
        """Log a trial that is missing."""

    def log_summary(self) -> None:
        """Write `summary`, if there is one."""

    def terminate(self, status: str) -> None:
        """Close the study as `FINISHED`, `KILLED` or `FAILED`."""

    def problem_of(self, error: Exception) -> EnvironmentProblem:
        """An error of the other program or its library, in our words and without a secret."""
