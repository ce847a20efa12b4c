"""Whether splits share examples."""

from __future__ import annotations

import hashlib

import torch

from pruning.outputs import tensors_in
from pruning.trees import contents
from search.workloads.base import Workload
from search.workloads.batch_form import Batch

PAIRS = (
    ("fit", "validation"), ("fit", "test"), ("validation", "test"), ("calibration", "validation"),
    ("calibration", "test"),
)  # fmt: skip
"""Splits that should have no example in common; calibration data may well be a part of fit data."""
FEW = 0.01
"""Up to this share of the second split may also be in the first without a note, since real data has some duplicates."""


def overlaps(workload: Workload) -> str | None:
    """One line that says which splits hold the same inputs, and how many; None if hardly any do.

    Only splits that are in memory are compared.
    """
    known: dict[str, list[bytes]] = {}
    for split in {name for pair in PAIRS for name in pair}:
        known[split] = _digests(workload.examples(split).whole) if workload.reads(split) else []
    found = []
    for first, second in PAIRS:
        held = set(known[first])
        shared = sum(digest in held for digest in known[second])
        if shared > FEW * len(known[second]):
            found.append(
                f"{shared} of {len(known[second])} {second} examples {'is' if shared == 1 else 'are'} also in {first}"
            )
    return f"splits overlap: {'; '.join(found)}: accuracies on them come out too high" if found else None


def _digests(whole: Batch | None) -> list[bytes]:
    """One for each example; none where the examples are not in memory."""
    if whole is None:
        return []
    tensors = [tensor for tensor in tensors_in(contents(whole[0])) if tensor.ndim]
    parts = [tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8) for tensor in tensors]
    rows = torch.cat(parts, 1)
    if not rows.shape[1]:
        return []
    return [hashlib.blake2b(row, digest_size=8).digest() for row in rows.numpy()]
