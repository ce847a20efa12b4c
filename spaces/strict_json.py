"""Reading JSON from anywhere: one object, no duplicate keys, no constants outside the standard, not too deep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from spaces.printable import LONGEST_WORD, shortened

DEEPEST, LONGEST_NUMBER = 64, 1000
"""The most levels of nesting, and the most characters of a whole number, that are read."""


def parse_object(text: str, constants: bool = False) -> dict[str, Any]:
    """Parse a JSON object strictly: duplicate keys, NaN, Infinity and anything but an object raise `ValueError`.

    So do nesting deeper than `DEEPEST` and numbers longer than `LONGEST_NUMBER` characters.

    Args:
        constants: accept NaN and Infinity, which records of losses hold.

    >>> parse_object('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: duplicate key 'a': keep one of them
    """

    if not isinstance(text, str):
        raise ValueError(f"JSON must be text, got {type(text).__name__}")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"duplicate key {shortened(repr(key), LONGEST_WORD)}: keep one of them")
            result[key] = value
        return result

    def no_constants(word: str) -> Any:
        raise ValueError(f"{word} is not a valid number here: use a finite number")

    def integer(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits)} digits is not valid here")
        return int(digits)

    read_constant = None if constants else no_constants
    try:
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_int=integer, parse_constant=read_constant)
        if _deeper(data, DEEPEST):
            raise RecursionError
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("not valid here: nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"must be a JSON object, got {type(data).__name__}")
    return data


def _deeper(data: Any, most: int) -> bool:
    """Whether objects and lists are nested more than `most` deep."""
    level = [data] if isinstance(data, (dict, list)) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def nan_as_null(value: Any) -> Any:
    """Plain data with None in place of every number that is not finite, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: nan_as_null(inner) for key, inner in value.items()}
    return [nan_as_null(inner) for inner in value] if isinstance(value, (list, tuple)) else value
