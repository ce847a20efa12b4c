"""Whether examples are the same each time they are read."""

from __future__ import annotations

from search.workloads.base import SPLITS, Workload
from search.workloads.datasets import FromDataset

SCORED = ("calibration", "validation", "test")


def unsteady(workload: Workload) -> str | None:
    """One line about splits whose examples change each time they are read; None if there is nothing to be said.

    Examples that networks are trained on may well change, if a seed makes them the same again.
    """
    found = {split: workload.examples(split) for split in SPLITS if workload.reads(split)}
    own = [split for split, examples in found.items() if not examples.repeats_itself]
    drawn = [
        split
        for split in SCORED
        if split not in own and isinstance(examples := found.get(split), FromDataset) and examples.changes
    ]
    parts = []
    if own:
        parts.append(
            f"examples of {', '.join(own)} draw from generators of their own, which no seed reaches: trials do not "
            "repeat themselves; let them draw from the global generators of torch, NumPy or Python"
        )
    if drawn:
        parts.append(
            f"examples of {', '.join(drawn)} change each time they are read: they are read under fixed seeds, the same "
            "for all networks"
        )
    return "; ".join(parts) or None
