"""Checks of what a user gives, with one-line messages that name the value received and the nearest valid one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TypeGuard

from spaces.printable import LONGEST_WORD, shortened


def unknown(what: str, received: object, valid: Iterable[str], hint: str | None = None) -> str:
    """Say that `received` is not a known `what`, and which valid name is nearest: one that contains it, if there is
    one.

    Args:
        hint: what is said in place of the nearest name; nothing if it is empty.

    >>> unknown("layer", "conv1.wieght", ["conv0.weight", "conv1.weight"])
    "unknown layer 'conv1.wieght': did you mean 'conv1.weight'? (2 known: conv0.weight, conv1.weight)"
    """
    names, said = sorted(valid), shortened(repr(received), LONGEST_WORD)
    if not names:
        return f"unknown {what} {said}: there is none yet"
    text = shortened(str(received), LONGEST_WORD)
    holding = [name for name in names if len(text) > 1 and text in name]
    near = difflib.get_close_matches(text, holding or names, n=1, cutoff=0.0)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if hint is None:
        hint = f"did you mean {near[0]!r}?" if near else ""
    hint = f": {hint}" if hint else ""
    return f"unknown {what} {said}{hint} ({len(names)} known: {shown})"


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite real number that a float can hold; booleans do not count.

    >>> is_number(0.25), is_number(True), is_number("0.25"), is_number(10**400)
    (True, False, False, False)
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_limit(name: str, share: object) -> float:
    """Return a limit, a share of the dense model's with 0 < share <= 1, unchanged; otherwise raise `ValueError`.

    >>> check_limit("max_size", 25)
    Traceback (most recent call last):
    ValueError: max_size must satisfy 0 < max_size <= 1, got 25; 25 % is 0.25
    """
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(f"{name} must satisfy 0 < {name} <= 1, got {share!r}{percent_meant(share)}")
    return share


def percent_meant(value: object) -> str:
    """The share that a number above 1, or a text such as `25%`, probably meant, as the end of a message; empty if none.

    >>> percent_meant(30), percent_meant("0.5%"), percent_meant("x"), percent_meant(-1)
    ('; 30 % is 0.3', '; 0.5 % is 0.005', '', '')
    """
    above = 1
    if isinstance(value, str):
        above = 0 if value.strip().endswith("%") else 1
        try:
            value = float(value.strip().removesuffix("%"))
        except ValueError:
            return ""
    return f"; {value:g} % is {value / 100:g}" if is_number(value) and above < value <= 100 else ""


def check_words(what: str, words: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ValueError` unless `words` are one or more of `known`, none twice."""
    for word in () if isinstance(words, str) else words:
        if word not in known:
            raise ValueError(unknown(what, word, known))
    if isinstance(words, str) or not words or len(set(words)) < len(words):
        raise ValueError(f"{what} must be a tuple of one or more of {', '.join(known)}, none twice, got {words!r}")


def check_sparsity(value: object, where: str = "sparsity") -> float:
    """Return `value` as a float if it is a number with 0 <= value < 1, otherwise raise `ValueError`.

    Sparsity is the share removed. Booleans, strings and NaN are refused.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{where} must be a number with 0 <= sparsity < 1, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = -math.inf if value < 0 else math.inf
    if not 0.0 <= number < 1.0:
        nearest = "0.0" if number < 0 else "0.99" if number >= 1 else "a finite number"
        raise ValueError(
            f"{where} must satisfy 0 <= sparsity < 1, got {number!r}; nearest valid: {nearest}{percent_meant(number)}"
        )
    return number + 0.0  # turns -0.0 into 0.0
