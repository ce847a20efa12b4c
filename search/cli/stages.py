"""What `apply` compares: the dense network, the same with its policy applied, and what training made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.cli.text_tables import render
from search.metric import Metric, with_values
from spaces.cost.counts import RelativeCost
from spaces.wording import percent


@dataclass(frozen=True)
class Stage:
    """One network.

    Attributes:
        accuracy: on validation data, a share, 0 to 1; None where it cannot be scored.
        test_accuracy: likewise; None of a network that is not scored on test data.
        shares: what it costs, as shares of the dense network's; None where `accuracy` is.
    """

    network: str
    accuracy: float | None
    test_accuracy: float | None
    shares: RelativeCost | None


def stages_table(stages: Sequence[Stage], unit: Metric) -> str:
    """A row each."""
    rows = []
    for one in stages:
        costs = [None] * 3 if one.shares is None else [one.shares.encoded, one.shares.nonzero, one.shares.macs]
        rows.append([one.network, unit.shown(one.accuracy), unit.shown(one.test_accuracy), *map(percent, costs)])
    return render(["network", "validation", "test", "encoded", "nonzero", "MACs"], rows)


def stages_data(stages: Sequence[Stage], unit: Metric) -> list[dict[str, Any]]:
    """The same as plain data; sizes and MACs are shares of the dense network's."""
    rows = []
    for one in stages:
        costs = {} if one.shares is None else asdict(one.shares)
        sizes = {f"size_{name}": costs.get(name) for name in ("encoded", "nonzero")}
        found = {"accuracy": one.accuracy, "test_accuracy": one.test_accuracy}
        rows.append({"network": one.network, **with_values(found, unit), **sizes, "macs": costs.get("macs")})
    return rows
