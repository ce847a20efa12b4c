"""One-line messages that name the value received and the nearest valid one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, received: object, valid: Iterable[str]) -> str:
    """Say that `received` is no known `what`, and which valid name is nearest.

    >>> unknown("layer", "conv1.wieght", ["conv0.weight", "conv1.weight"])
    "unknown layer 'conv1.wieght': did you mean 'conv1.weight'? (2 known: conv0.weight, conv1.weight)"
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(received), names, n=1, cutoff=0.0)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f": did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {received!r}{hint} ({len(names)} known: {shown})"
