"""How near the files of rounded weights come to what was said of them before training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from search.records import TrialResult


@dataclass(frozen=True)
class Tightness:
    """Over some written files: bytes as shares of what no file of their policy exceeds (`bound`) and of what was
    planned.

    Attributes:
        files: their number.
        of_bound: smallest and largest share.
        of_planned: likewise; at most 1.
        shortened: files that were made to fit, by values set to zero.
        most_given_up: the most values that one of them lost so.
    """

    files: int
    of_bound: tuple[float, float]
    of_planned: tuple[float, float]
    shortened: int
    most_given_up: int


def tightness(results: Iterable[TrialResult]) -> Tightness | None:
    """Of the files among some results; None if there are none."""
    files = [result.file for result in results if result.file is not None]
    if not files:
        return None
    of_bound, of_planned = [one.bytes / one.bound for one in files], [one.bytes / one.planned for one in files]
    given_up = [one.given_up for one in files]
    return Tightness(
        files=len(files),
        of_bound=(min(of_bound), max(of_bound)),
        of_planned=(min(of_planned), max(of_planned)),
        shortened=sum(count > 0 for count in given_up),
        most_given_up=max(given_up),
    )


def tightness_line(found: Tightness) -> str:
    """In one line.

    >>> print(*tightness_line(Tightness(24, (0.81, 0.93), (0.95, 1.0), 2, 35)).split("; "), sep="\\n")
    Files: 24 written, each with 95 to 100 % of the bytes predicted for it and 81 to 93 % of the most it could take
    to fit the prediction, 2 had small values set to 0, 35 at most
    """
    lost = "none had small values set to 0 to fit the prediction"
    if found.shortened:
        lost = f"to fit the prediction, {found.shortened} had small values set to 0, {found.most_given_up:,} at most"
    bound, planned = (_range(shares) for shares in (found.of_bound, found.of_planned))
    each = "each with" if found.files > 1 else "with"
    return (
        f"Files: {found.files} written, {each} {planned} of the bytes predicted for it and {bound} of the most it "
        f"could take; {lost}"
    )


def _range(shares: tuple[float, float]) -> str:
    low, high = (f"{share * 100:.0f}" for share in shares)
    return f"{low} %" if low == high else f"{low} to {high} %"
