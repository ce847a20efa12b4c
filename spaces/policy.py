"""The pruning policy: which share of which layer goes, in which pattern, by which schedule."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from types import MappingProxyType
from typing import Any

from spaces.criteria import check_criterion
from spaces.errors import percent_meant, unknown
from spaces.printable import LONGEST_WORD, shortened
from spaces.schedule import SCHEDULES, Schedule

POLICY_VERSION = 1
GRANULARITIES = ("fine-grained", "vector", "kernel", "channel", "1:4", "2:4", "*:4", "*:8")
COMBINED = tuple(f"channel+{word}" for word in GRANULARITIES if word != "channel")
"""What a search may choose beside a granularity: a removal, and after it masks of one granularity on what stays."""
CHOICES = (*GRANULARITIES, *COMBINED)
SEARCHED = ("fine-grained", "channel")
"""Granularities of a search that names none."""
DEEPEST, LONGEST_NUMBER = 64, 1000
"""Of JSON that is read: levels of nesting, characters of a whole number."""


def parts_of(word: str) -> tuple[str, ...]:
    """The granularities a choice is made of, removal first.

    >>> parts_of("channel+2:4"), parts_of("kernel")
    (('channel', '2:4'), ('kernel',))
    """
    return tuple(word.split("+"))


def parts_in(words: Iterable[str]) -> tuple[str, ...]:
    """The granularities these choices are made of, each once, in the order they come."""
    return tuple(dict.fromkeys(part for word in words for part in parts_of(word)))


def removed_count(sparsity: float, units: int) -> int:
    """Units to remove: `floor(sparsity * units + 0.5)`, but at least one unit stays.

    >>> removed_count(0.75, 25), removed_count(0.5, 5), removed_count(0.99, 3)
    (19, 3, 2)
    """
    check_sparsity(sparsity)
    if units < 1:
        raise ValueError(f"nothing to prune: {units} units, need at least 1")
    return min(math.floor(sparsity * units + 0.5), units - 1)


def check_sparsity(value: object, where: str = "sparsity") -> float:
    """Return `value` as float if it is a number with 0 <= value < 1, else raise `ValueError`.

    Booleans, strings and NaN are refused: sparsity is the share removed.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{where} must be a number with 0 <= sparsity < 1, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not 0.0 <= number < 1.0:
        nearest = "0.0" if number < 0 else "0.99" if number >= 1 else "a finite number"
        raise ValueError(
            f"{where} must satisfy 0 <= sparsity < 1, got {number!r}; nearest valid: {nearest}{percent_meant(number)}"
        )
    return number + 0.0  # turns -0.0 into 0.0


def _checked_layers(field_name: str, mapping: Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{field_name} must map layer names to shares, got {type(mapping).__name__}")
    for name in mapping:
        if not isinstance(name, str):
            raise ValueError(f"{field_name} must have layer names as keys, got {name!r}")
    return MappingProxyType({name: check_sparsity(v, f"{field_name} of {name!r}") for name, v in mapping.items()})


@dataclass(frozen=True)
class PruningPolicy:
    """A complete, model-independent decision; immutable, comparable and JSON-able.

    Attributes:
        sparsity: layer -> share of its units removed, 0 <= s < 1; layers not named stay whole. With
            granularity `channel` it is the share of output channels removed.
        granularity: one of `GRANULARITIES` for all layers, or layer -> granularity (a layer with
            sparsity but no entry is `fine-grained`).
        removal: layer -> share of output channels removed first; masks then act on what stays.
        criterion: one of `spaces.criteria.CRITERIA`, or one of the user's own; which units go first.
        schedule: a `Schedule`, or its kind as a string.

    Raises `ValueError` for shares outside [0, 1), unknown words, a criterion that is not defined for a
    granularity in use, and a layer with granularity `channel` that asks for a removal as well (its
    sparsity is the removal).

    >>> PruningPolicy({"conv.weight": 0.5}).to_dict()["sparsity"]
    {'conv.weight': 0.5}
    """

    sparsity: Mapping[str, float]
    granularity: str | Mapping[str, str] = "fine-grained"
    removal: Mapping[str, float] = field(default_factory=dict)
    criterion: str = "magnitude-l2"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", _checked_layers("sparsity", self.sparsity))
        object.__setattr__(self, "removal", _checked_layers("removal", self.removal))
        if isinstance(self.granularity, Mapping):
            object.__setattr__(self, "granularity", MappingProxyType(dict(self.granularity)))
        words = self.granularity.values() if isinstance(self.granularity, Mapping) else [self.granularity]
        for word in words:
            if word not in GRANULARITIES:
                raise ValueError(unknown("granularity", word, GRANULARITIES))
        object.__setattr__(self, "criterion", check_criterion(self.criterion, self._granularities_in_use()))
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", Schedule(self.schedule))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule must be a Schedule or one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        for name in self.removal:
            if self.sparsity.get(name, 0.0) > 0 and self.granularity_of(name) == "channel":
                raise ValueError(
                    f"layer {name!r} has granularity 'channel' and a removal of {self.removal[name]}: "
                    "its sparsity is the removal; leave one of them out"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return PruningPolicy.from_dict, (self.to_dict(),)

    def granularity_of(self, layer: str) -> str:
        """The granularity that holds for `layer`."""
        if isinstance(self.granularity, Mapping):
            return self.granularity.get(layer, "fine-grained")
        return self.granularity

    def _granularities_in_use(self) -> list[str]:
        """Of layers that are asked for something, in their order; removals are of channels."""
        asked = [self.granularity_of(name) for name, share in self.sparsity.items() if share > 0]
        return list(dict.fromkeys([*asked, *("channel" for share in self.removal.values() if share > 0)]))

    def channel_requests(self) -> dict[str, float]:
        """Layer -> share of its output channels asked to go, from removals and channel sparsities."""
        asked = {name: share for name, share in self.removal.items() if share > 0}
        for name, share in self.sparsity.items():
            if share > 0 and self.granularity_of(name) == "channel":
                asked[name] = share
        return asked

    def mask_requests(self) -> dict[str, float]:
        """Layer -> share of the units of what stays that masks set to zero."""
        return {n: s for n, s in self.sparsity.items() if s > 0 and self.granularity_of(n) != "channel"}

    @property
    def granularity_label(self) -> str:
        """One word for tables: the granularity, a combined word such as `channel+kernel` where a removal comes before
        the masks, `channel` where it comes without any, or `mixed` when layers differ."""
        used = {self.granularity_of(name) for name, share in self.sparsity.items() if share > 0}
        word = self.granularity
        if isinstance(word, Mapping):
            word = next(iter(used)) if len(used) == 1 else "mixed" if used else "fine-grained"
        if not any(self.removal.values()):
            return word
        combined = f"channel+{word}" if used else "channel"
        return combined if combined in (*COMBINED, "channel") else word

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a `version`, sorted by layer name; `from_dict` undoes it."""
        granularity = self.granularity if isinstance(self.granularity, str) else dict(sorted(self.granularity.items()))
        return {
            "version": POLICY_VERSION,
            "sparsity": dict(sorted(self.sparsity.items())),
            "granularity": granularity,
            "removal": dict(sorted(self.removal.items())),
            "criterion": self.criterion,
            "schedule": self.schedule.to_dict(),
        }

    def to_json(self) -> str:
        """Indented JSON text with sorted layers, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPolicy:
        """Read what `to_dict` wrote; unknown keys and other versions raise `ValueError`."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a policy must be a mapping as `to_dict` writes it, got {type(data).__name__}")
        fields = {"version", "sparsity", "granularity", "removal", "criterion", "schedule"}
        for key in data:
            if key not in fields:
                raise ValueError(unknown("policy key", key, fields))
        if data.get("version") != POLICY_VERSION:
            raise ValueError(f"policy version must be {POLICY_VERSION}, got {data.get('version')!r}")
        if "sparsity" not in data:
            raise ValueError("policy has no 'sparsity': add {layer: share removed}")
        rest = {key: data[key] for key in ("granularity", "removal", "criterion") if key in data}
        if "schedule" in data:
            schedule = data["schedule"]
            if isinstance(schedule, Mapping):
                schedule = Schedule.from_dict(schedule)
            rest["schedule"] = schedule
        return cls(sparsity=data["sparsity"], **rest)

    @classmethod
    def from_json(cls, text: str) -> PruningPolicy:
        """Read what `to_json` wrote; duplicate keys, NaN and non-objects raise `ValueError`."""
        return cls.from_dict(parse_object(text))

    @cached_property
    def digest(self) -> str:
        """16 hex digits naming the policy's content.

        Layers asked for nothing, and what of a schedule has no effect on its kind, do not change it.
        """
        data = self.to_dict()
        for key in ("sparsity", "removal"):
            data[key] = {name: share for name, share in data[key].items() if share > 0}
        data["granularity"] = {name: self.granularity_of(name) for name in data["sparsity"]}
        data["schedule"] = self.schedule.essence
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def parse_object(text: str, constants: bool = False) -> dict[str, Any]:
    """Parse a JSON object strictly: duplicate keys, NaN, Infinity and non-objects raise `ValueError`.

    So do a nesting deeper than `DEEPEST` and numbers of more than `LONGEST_NUMBER` characters.

    Args:
        constants: take NaN and Infinity, which records of losses hold.

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

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits)} digits is not valid here")
        return int(digits)

    options = {} if constants else {"parse_constant": no_constants}
    try:
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_int=whole, **options)
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


def parse_sparsity(text: str) -> dict[str, float]:
    """Read the flat dict of the pruning labs, `{"layer": share removed, ...}`, every value checked."""
    return {name: check_sparsity(value, f"sparsity of {name!r}") for name, value in parse_object(text).items()}
