"""Sizes and MACs as numbers: absolute counts, and shares of the dense network's."""

from __future__ import annotations

from dataclasses import dataclass

SIZE_METRICS = ("encoded", "nonzero")


@dataclass(frozen=True)
class Footprint:
    """Absolute counts of a network under a policy; MACs are those of one example.

    `macs` counts dense kernels on what remains; `macs_nonzero` assumes every zero is skipped.
    """

    parameters: int
    nonzero: int
    encoded_bytes: int
    macs: int
    macs_nonzero: int


@dataclass(frozen=True)
class RelativeCost:
    """A footprint over the dense model's."""

    encoded: float
    nonzero: float
    macs: float
    macs_nonzero: float

    def of(self, metric: str) -> float:
        """The share by the name of a size metric."""
        return {"encoded": self.encoded, "nonzero": self.nonzero}[metric]


def relative_cost(part: Footprint, dense: Footprint) -> RelativeCost:
    """`part` over `dense`; MACs are 1.0 when the dense model has none."""
    return RelativeCost(
        encoded=part.encoded_bytes / dense.encoded_bytes,
        nonzero=part.nonzero / dense.parameters,
        macs=part.macs / dense.macs if dense.macs else 1.0,
        macs_nonzero=part.macs_nonzero / dense.macs if dense.macs else 1.0,
    )
