"""The pruning policy: which share of which layer goes, in which pattern, by which schedule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from spaces.bits import FLOAT_BITS, check_bits
from spaces.criteria import check_criterion
from spaces.granularity import COMBINED, GRANULARITIES
from spaces.schedule import EXPONENT_OF, SCHEDULES, Schedule
from spaces.strict_json import parse_object
from spaces.validation import check_sparsity, unknown

POLICY_VERSION = 1


def _checked_layers(field_name: str, mapping: Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{field_name} must map layer names to shares, got {type(mapping).__name__}")
    for name in mapping:
        if not isinstance(name, str):
            raise ValueError(f"{field_name} must have layer names as keys, got {name!r}")
    return MappingProxyType({name: check_sparsity(v, f"{field_name} of {name!r}") for name, v in mapping.items()})


def _checked_bits(bits: Any) -> int | Mapping[str, int]:
    if not isinstance(bits, Mapping):
        return check_bits(bits)
    for name in bits:
        if not isinstance(name, str):
            raise ValueError(f"bits must have layer names as keys, got {name!r}")
    widths = {name: check_bits(value, f"bits of {name!r}") for name, value in bits.items()}
    rounded = {name: width for name, width in widths.items() if width < FLOAT_BITS}
    return MappingProxyType(rounded) if rounded else FLOAT_BITS


@dataclass(frozen=True)
class PruningPolicy:
    """A complete decision on how to prune, independent of any model; immutable, comparable, and stored as JSON.

    Attributes:
        sparsity: layer -> share of its units removed, 0 <= s < 1; layers not named stay whole. With granularity
            `channel` it is the share of output channels removed.
        granularity: one of `GRANULARITIES` for all layers, or layer -> granularity (a layer with a sparsity but no
            entry is `fine-grained`).
        removal: layer -> share of output channels removed first; masks then act on what stays.
        criterion: which units go first: one of `spaces.criteria.CRITERIA`, or one of the user's own.
        schedule: a `Schedule`, or its kind as a string.
        bits: width of a stored weight value, one of `spaces.bits.BITS` for all layers, or layer -> width (a layer
            without an entry has 32, and entries of 32 are dropped). Below 32 the network computes with weights rounded
            to whole numbers times a scale an output channel; zeros stay zero. Layers that nothing is removed from are
            rounded as well.

    Raises:
        ValueError: a share outside [0, 1), an unknown granularity, criterion or schedule, bits that no value has, a
            criterion that is not defined for a granularity in use, or a layer with granularity `channel` that has a
            removal as well (its sparsity is the removal).

    >>> PruningPolicy({"conv.weight": 0.5}).to_dict()["sparsity"]
    {'conv.weight': 0.5}
    """

    sparsity: Mapping[str, float]
    granularity: str | Mapping[str, str] = "fine-grained"
    removal: Mapping[str, float] = field(default_factory=dict)
    criterion: str = "magnitude-l2"
    schedule: Schedule = field(default_factory=Schedule)
    bits: int | Mapping[str, int] = FLOAT_BITS

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
            raise ValueError(
                f"schedule must be a Schedule or one of {', '.join((*SCHEDULES, *EXPONENT_OF))}, got {self.schedule!r}"
            )
        object.__setattr__(self, "bits", _checked_bits(self.bits))
        for name in self.removal:
            if self.sparsity.get(name, 0.0) > 0 and self.granularity_of(name) == "channel":
                raise ValueError(
                    f"layer {name!r} has granularity 'channel' and a removal of {self.removal[name]}: "
                    "its sparsity is the removal; leave one of them out"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return PruningPolicy.from_dict, (self.to_dict(),)

    def granularity_of(self, layer: str) -> str:
        """The granularity of `layer`."""
        if isinstance(self.granularity, Mapping):
            return self.granularity.get(layer, "fine-grained")
        return self.granularity

    def bits_of(self, layer: str) -> int:
        """The width of a stored value of `layer`."""
        return self.bits.get(layer, FLOAT_BITS) if isinstance(self.bits, Mapping) else self.bits

    @property
    def is_rounded(self) -> bool:
        """Whether any weight is stored in fewer than 32 bits."""
        return self.bits != FLOAT_BITS

    def _granularities_in_use(self) -> list[str]:
        """Granularities of the layers with a request, in order; removals are of channels."""
        asked = [self.granularity_of(name) for name, share in self.sparsity.items() if share > 0]
        return list(dict.fromkeys([*asked, *("channel" for share in self.removal.values() if share > 0)]))

    def channel_requests(self) -> dict[str, float]:
        """Layer -> requested share of its output channels, from removals and channel sparsities."""
        asked = {name: share for name, share in self.removal.items() if share > 0}
        for name, share in self.sparsity.items():
            if share > 0 and self.granularity_of(name) == "channel":
                asked[name] = share
        return asked

    def mask_requests(self) -> dict[str, float]:
        """Layer -> share of the remaining units that masks set to zero."""
        return {n: s for n, s in self.sparsity.items() if s > 0 and self.granularity_of(n) != "channel"}

    @property
    def granularity_label(self) -> str:
        """One word for tables: the granularity; a combination such as `channel+kernel` if a removal comes before the
        masks, `channel` if it comes alone; or `mixed` if layers differ.
        """
        used = {self.granularity_of(name) for name, share in self.sparsity.items() if share > 0}
        word = self.granularity
        if isinstance(word, Mapping):
            word = next(iter(used)) if len(used) == 1 else "mixed" if used else "fine-grained"
        if not any(self.removal.values()):
            return word
        combined = f"channel+{word}" if used else "channel"
        return combined if combined in (*COMBINED, "channel") else word

    @property
    def bits_label(self) -> str:
        """For headlines: `4 bits`, `mixed bits` if layers differ, empty if no weight is rounded."""
        if not self.is_rounded:
            return ""
        return "mixed bits" if isinstance(self.bits, Mapping) else f"{self.bits} bits"

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a `version`, sorted by layer name; the inverse of `from_dict`. Bits of 32 are left out."""
        granularity = self.granularity if isinstance(self.granularity, str) else dict(sorted(self.granularity.items()))
        return {
            "version": POLICY_VERSION,
            "sparsity": dict(sorted(self.sparsity.items())),
            "granularity": granularity,
            "removal": dict(sorted(self.removal.items())),
            "criterion": self.criterion,
            "schedule": self.schedule.to_dict(),
            **self._stored_bits(),
        }

    def _stored_bits(self) -> dict[str, Any]:
        if not self.is_rounded:
            return {}
        return {"bits": dict(sorted(self.bits.items())) if isinstance(self.bits, Mapping) else self.bits}

    def to_json(self) -> str:
        """Indented JSON text with sorted layers, ending in a newline."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPolicy:
        """Read what `to_dict` wrote; unknown keys and other versions raise `ValueError`."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a policy must be a mapping as `to_dict` writes it, got {type(data).__name__}")
        fields = {"version", "sparsity", "granularity", "removal", "criterion", "schedule", "bits"}
        for key in data:
            if key not in fields:
                raise ValueError(unknown("policy key", key, fields))
        if data.get("version") != POLICY_VERSION:
            raise ValueError(f"policy version must be {POLICY_VERSION}, got {data.get('version')!r}")
        if "sparsity" not in data:
            raise ValueError("policy has no 'sparsity': add {layer: share removed}")
        rest = {key: data[key] for key in ("granularity", "removal", "criterion", "bits") if key in data}
        if "schedule" in data:
            schedule = data["schedule"]
            if isinstance(schedule, Mapping):
                schedule = Schedule.from_dict(dict(schedule))
            rest["schedule"] = schedule
        return cls(sparsity=data["sparsity"], **rest)

    @classmethod
    def from_json(cls, text: str) -> PruningPolicy:
        """Read what `to_json` wrote; duplicate keys, NaN and non-objects raise `ValueError`."""
        return cls.from_dict(parse_object(text))

    @cached_property
    def digest(self) -> str:
        """16 hex digits that identify the policy's content.

        Layers without a request do not change it, nor do bits of 32, nor schedule settings that have no effect on the
        schedule's kind.
        """
        data = self.to_dict()
        for key in ("sparsity", "removal"):
            data[key] = {name: share for name, share in data[key].items() if share > 0}
        data["granularity"] = {name: self.granularity_of(name) for name in data["sparsity"]}
        data["schedule"] = self.schedule.essence
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def parse_sparsity(text: str) -> dict[str, float]:
    """Read the flat dict of the pruning labs, `{"layer": share removed, ...}`, and check every value."""
    return {name: check_sparsity(value, f"sparsity of {name!r}") for name, value in parse_object(text).items()}
