"""In what two studies differ, as far as it decides what of their fronts can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.metric import Metric
from search.results.view import StudyView
from search.store.study_record import ARCHITECTURE, DATA, DENSE, LATENCY_DEVICE, of_split
from spaces.wording import limit, listed

OBJECTIVES = {"macs": "MACs", "latency": "predicted latency"}
"""What a third objective is called."""
VALIDATION = of_split("validation")
LATENCY = "device of the latency"


@dataclass(frozen=True)
class Unlike:
    """What of two studies' fronts can be compared, and why not all.

    Attributes:
        differences: parts of a study that differ, in words, with both values where they say anything.
        metric: whether accuracies are of one metric, so that they have one scale.
        accuracy: whether they are of the same validation data too.
        latency: whether both predict it for the same device.
        size: the measure of size that both are shown by, `encoded` or `nonzero`.
    """

    differences: tuple[str, ...]
    metric: bool
    accuracy: bool
    latency: bool
    size: str

    def line(self, ours: str, theirs: str) -> str:
        """In one line, of studies of these names; empty if nothing differs."""
        if not self.differences:
            return ""
        shown = ["accuracies"] * self.accuracy + [f"{self.size} sizes", "MACs"] + ["latencies"] * self.latency
        own = ", as shares of two different dense models" * (ARCHITECTURE in self.differences)
        return f"{ours} and {theirs} differ in {listed(self.differences)}. Their {listed(shown)} can be compared{own}."


def unlike(ours: StudyView, theirs: StudyView) -> Unlike:
    """Look at the config, the limits and the record of both."""
    pair = ours, theirs
    first, second = (_identity(view) for view in pair)
    found = [
        (name, one, other)
        for name, (one, other) in {
            "third objective": tuple(OBJECTIVES[view.config.cost] for view in pair),
            "metric": tuple(_told(view.state.unit) for view in pair),
            "size metric": tuple(view.config.size_metric for view in pair),
            "size limit": tuple(limit(view.state.max_size) for view in pair),
            "MACs limit": tuple(limit(view.config.max_macs) for view in pair),
            "latency limit": tuple(limit(view.config.max_latency) for view in pair),
            **_of_latency(pair, first, second),
        }.items()
        if one != other
    ]
    said = [f"{name} ({one}, {other})" for name, one, other in found]
    said += [part for part in (ARCHITECTURE, VALIDATION) if first.get(part) != second.get(part)]
    if first.get(DENSE) != second.get(DENSE):
        dense = (view.state.unit.shown(view.state.dense_accuracy) for view in pair)
        said.append(f"{DENSE} ({', '.join(value or 'unknown' for value in dense)})")
    names = {name for name, *_ in found}
    metric = "metric" not in names
    return Unlike(
        differences=tuple(said),
        metric=metric,
        accuracy=metric and first.get(VALIDATION) == second.get(VALIDATION),
        latency=all(view.config.needs_latency for view in pair) and LATENCY not in names,
        size="encoded" if "size metric" in names else ours.config.size_metric,
    )


def _identity(view: StudyView) -> dict[str, Any]:
    """What a study's record says of model and data; earlier versions had one fingerprint of all splits."""
    found = view.folder.read_record()["identity"]
    return {VALIDATION: found.get(DATA), **found}


def _of_latency(
    pair: tuple[StudyView, StudyView], first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """The devices that latency is predicted for, where both studies do."""
    if not all(view.config.needs_latency for view in pair):
        return {}
    return {LATENCY: (first.get(LATENCY_DEVICE, "unknown"), second.get(LATENCY_DEVICE, "unknown"))}


def _told(unit: Metric) -> str:
    """All of a metric but the dense model's value, which differs from study to study."""
    ends = (f"{name} {end:g}" for name, end in (("low", unit.low), ("high", unit.high)) if end is not None)
    return " ".join([unit.name, f"best {unit.best}", *ends])
