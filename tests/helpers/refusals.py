"""What is said of bad input at a public entry point: one line with what, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from search.errors import PrunefrontError

MISSPELT = "did you mean"


def refuse(call: Callable[[], object], said: str, kind: type[Exception] = ValueError) -> None:
    """The call raises an error of one line that says this, and none of ours is caught by accident."""
    with pytest.raises(kind) as raised:
        call()
    text = str(raised.value)
    assert said in text and "\n" not in text, text
    assert isinstance(raised.value, (ValueError, PrunefrontError, FileNotFoundError)), raised.type


def table(cases: dict[str, tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases.items()])
