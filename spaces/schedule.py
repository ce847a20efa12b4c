"""When a policy's sparsities are reached: all at once, along a polynomial, or in rounds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import is_number, percent_meant, unknown

SCHEDULES = ("one-shot", "polynomial", "iterative")
EXPONENT_OF = {"linear": 1.0, "cubic": 3.0}
"""Names of polynomials -> their exponent."""
DEFAULT_RAMP, DEFAULT_ROUNDS = 0.6, 3
MOST = {"exponent": 1000, "interval": 10**9, "rounds": 1000}
"""Larger values change nothing, however long the fine-tune is."""
_NUMBERS = tuple((name, Real, "number") for name in ("exponent", "ramp", "start"))
_SHARES = ("ramp", "start")
_WHOLE = tuple((name, Integral, "whole number") for name in ("interval", "rounds"))


@dataclass(frozen=True)
class Schedule:
    """How a policy's sparsities are reached during fine-tuning; exactly reached at its end, whatever the number of
    steps.

    Attributes:
        kind: `one-shot` (all before the first step), `polynomial`, v(t) = v_f (1 - (1 - p)^exponent), or `iterative`:
            the fine-tune is divided into equal rounds, each with its own learning rate cycle; round k of n begins with
            the polynomial's value at p = k / n, and the last one with the final sparsity. `linear` and `cubic` are
            taken as well, and become `polynomial` with exponents 1 and 3.
        exponent: E > 0 of the polynomial; 1 is linear, 3 cubic. Has no effect on `one-shot`.
        ramp: share of the fine-tune's steps after which the polynomial has ended, start < ramp <= 1; masks are fixed
            after that.
        start: share of the steps before it begins, 0 <= start < ramp.
        interval: steps between two mask updates on the ramp; 0 spreads 20 updates over it.
        rounds: of `iterative`, >= 1.
        regrow: weights masked earlier keep the values they had, and return if they score higher at an update.
    """

    kind: str = "polynomial"
    exponent: float = 3.0
    ramp: float = DEFAULT_RAMP
    start: float = 0.0
    interval: int = 0
    rounds: int = DEFAULT_ROUNDS
    regrow: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.kind, str) and self.kind in EXPONENT_OF:  # from a file it may be anything
            named = EXPONENT_OF[self.kind]
            if self.exponent not in (named, type(self).exponent):
                raise ValueError(
                    f"schedule {self.kind} is the polynomial of exponent {named:g}, got exponent "
                    f"{_said(self.exponent)}: leave the exponent out, or name the schedule polynomial"
                )
            object.__setattr__(self, "kind", "polynomial")
            object.__setattr__(self, "exponent", named)
        if self.kind not in SCHEDULES:
            raise ValueError(unknown("schedule", self.kind, (*SCHEDULES, *EXPONENT_OF)))
        for name, kind, word in (*_NUMBERS, *_WHOLE):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                meant = percent_meant(value) if name in _SHARES else ""
                raise ValueError(f"schedule {name} must be a {word}, got {_said(value)}{meant}")
        if not (is_number(self.exponent) and self.exponent > 0):
            raise ValueError(f"schedule exponent must be > 0, got {_said(self.exponent)}; 1 is linear, 3 cubic")
        if not 0 < self.ramp <= 1:
            raise ValueError(
                f"schedule ramp must satisfy 0 < ramp <= 1, got {_said(self.ramp)}{percent_meant(self.ramp)}; "
                "the default is 0.6"
            )
        if not 0 <= self.start < self.ramp:
            raise ValueError(
                f"schedule start must satisfy 0 <= start < ramp, got {_said(self.start)}{percent_meant(self.start)}; "
                "the default is 0"
            )
        if self.interval < 0:
            raise ValueError(f"schedule interval must be >= 0 steps, got {_said(self.interval)}; 0 spreads the updates")
        if self.rounds < 1:
            raise ValueError(f"schedule rounds must be >= 1, got {_said(self.rounds)}; the default is {DEFAULT_ROUNDS}")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"schedule {name} must be at most {most}, got {_said(getattr(self, name))}")
        if not isinstance(self.regrow, bool):
            raise ValueError(f"schedule regrow must be true or false, got {self.regrow!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; of the fields added after kind, exponent and ramp, only those that differ from the default."""
        first = {"kind": self.kind, "exponent": float(self.exponent), "ramp": float(self.ramp)}
        later = {f.name: getattr(self, f.name) for f in fields(self)[3:] if getattr(self, f.name) != f.default}
        return first | later

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Read what `to_dict` wrote; an unknown key raises `ValueError`."""
        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                raise ValueError(unknown("schedule key", key, names))
        return cls(**data)

    @property
    def idle(self) -> tuple[str, ...]:
        """The fields that have no effect on this kind."""
        return {
            "one-shot": ("exponent", "ramp", "start", "interval", "rounds", "regrow"),
            "polynomial": ("rounds",),
            "iterative": ("ramp", "start", "interval"),
        }[self.kind]

    @property
    def essence(self) -> dict[str, Any]:
        """`to_dict` without the fields that have no effect."""
        return {key: value for key, value in self.to_dict().items() if key not in self.idle}


def _said(value: object) -> str:
    return shortened(repr(value), LONGEST_WORD)
