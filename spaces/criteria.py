"""The names of criteria: which units of a layer go first, and for which granularities a criterion is defined.

The formulas are in `pruning.importance.weights`. A name with a `:` is a criterion of the user's own, such as
`spread.py:spread`: files that contain one can be read anywhere, and its code is only looked for when something is
scored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spaces.validation import unknown


@dataclass(frozen=True)
class CriterionWord:
    """What can be said of a criterion without a model.

    Attributes:
        granularities: the only ones it is defined for; None means all.
        needs_data: whether it uses calibration data.
    """

    granularities: tuple[str, ...] | None = None
    needs_data: bool = False


_CHANNELS = ("channel",)
_BUILT_IN = {
    "magnitude-l1": CriterionWord(),
    "magnitude-l2": CriterionWord(),
    "random": CriterionWord(),
    "lamp": CriterionWord(),
    "fpgm": CriterionWord(_CHANNELS),
    "bn-scale": CriterionWord(_CHANNELS),
    "next-layer": CriterionWord(_CHANNELS),
    "activation": CriterionWord(needs_data=True),
    "taylor": CriterionWord(needs_data=True),
    "taylor-group": CriterionWord(needs_data=True),
    "obd-fisher": CriterionWord(needs_data=True),
    "obd-hutchinson": CriterionWord(needs_data=True),
    "reconstruction": CriterionWord(_CHANNELS, needs_data=True),
}
CRITERIA = tuple(_BUILT_IN)
SPELLINGS = {"obd": "obd-fisher"}
"""Shorter names and what they stand for: LeCun's criterion without a method means the Fisher diagonal."""
_own: dict[str, CriterionWord] = {}


def criterion_word(word: str) -> CriterionWord:
    """What is known of a criterion. For an unregistered one of the user's own that is nothing: all granularities, no
    data.

    Raises:
        ValueError: an unknown name; the nearest is named.

    >>> criterion_word("bn-scale").granularities
    ('channel',)
    """
    if isinstance(word, str):
        if found := _BUILT_IN.get(word) or _own.get(word):
            return found
        if ":" in word:
            return CriterionWord()
    raise ValueError(unknown("criterion", word, {*_BUILT_IN, *_own, *SPELLINGS}))


def check_criterion(word: str, granularities: Iterable[str] = ()) -> str:
    """The name itself, or the one it is short for, if the criterion is defined for all these granularities.

    Raises:
        ValueError: an unknown name, or a granularity for which the criterion is not defined.

    >>> check_criterion("obd", ["fine-grained"])
    'obd-fisher'
    """
    word = SPELLINGS.get(word, word) if isinstance(word, str) else word
    defined = criterion_word(word).granularities
    for granularity in granularities:
        if defined is not None and granularity not in defined:
            raise ValueError(
                f"criterion {word!r} is defined for granularity {', '.join(defined)} only, got {granularity!r}: "
                "ask for that alone, or choose another criterion"
            )
    return word


def add_criterion_word(word: str, granularities: Iterable[str] | None = None, needs_data: bool = False) -> None:
    """Make a name of the user's own known; a second call with other properties replaces the first.

    Raises:
        ValueError: not text, empty, or a built-in name.
    """
    if not isinstance(word, str) or not word.strip() or any(c.isspace() for c in word):
        raise ValueError(f"a criterion's name must be text without spaces, such as 'lab:spread', got {word!r}")
    if word in _BUILT_IN or word in SPELLINGS:
        raise ValueError(f"criterion {word!r} is built in: register yours by another name, such as 'my:{word}'")
    _own[word] = CriterionWord(None if granularities is None else tuple(granularities), needs_data)
