"""One-line messages that name the value received and the nearest valid one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real

from spaces.printable import LONGEST_WORD, shortened


def unknown(what: str, received: object, valid: Iterable[str]) -> str:
    """Say that `received` is no known `what`, and which valid name is nearest: one that holds it, if there is one.

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
    hint = f": did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {said}{hint} ({len(names)} known: {shown})"


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number that a float can hold; booleans are none.

    >>> is_number(0.25), is_number(True), is_number("0.25"), is_number(10**400)
    (True, False, False, False)
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_limit(name: str, share: object) -> float:
    """Return a limit, 0 < share <= 1 of the dense model's, as it is, else raise `ValueError`.

    >>> check_limit("max_size", 25)
    Traceback (most recent call last):
    ValueError: max_size must satisfy 0 < max_size <= 1, got 25; 25 % is 0.25
    """
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(f"{name} must satisfy 0 < {name} <= 1, got {share!r}{percent_meant(share)}")
    return share


def percent_meant(value: object) -> str:
    """The share a number above 1, or a text such as `25%`, may have meant, as the end of a message; else empty.

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
