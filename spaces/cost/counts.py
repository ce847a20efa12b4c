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

    def bytes_at(self, bits: int = 32, nonzero_only: bool = True) -> float:
        """The pruning labs' model size: so many bits for each parameter, or for each that is not a masked zero.

        >>> Footprint(parameters=100, nonzero=25, encoded_bytes=0, macs=0, macs_nonzero=0).bytes_at(8)
        25.0
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
            raise ValueError(f"bits must be a whole number >= 1, got {bits!r}; 32 is the default, 8 that of int8")
        return (self.nonzero if nonzero_only else self.parameters) * bits / 8


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
