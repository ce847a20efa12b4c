"""The calibration data: the only examples that data-driven scores see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.devices import read_at_once
from pruning.modules import observed
from pruning.trees import NetworkInputs, contents, run

SCORE_EXAMPLES = 256
"""How many examples a score uses, evenly spaced. Along a ramp, all scores are computed anew at each mask update."""
SCORE_BATCH = 32
"""Examples in one term of the sums over batches and in one forward pass; fewer if they are large (see
`examples_at_once`).
"""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Examples, and the loss whose change a score estimates.

    Attributes:
        inputs: (n, ...), or a `ModelInputs` of n examples; if there are more than `SCORE_EXAMPLES`, 256, that many
            evenly spaced ones are kept.
        targets: (n, ...), or a `Tree`, likewise.
        loss: (outputs, targets) -> scalar, the mean over the examples it is given.

    Raises:
        ValueError: no examples, or not as many targets as inputs.
    """

    inputs: NetworkInputs
    targets: Any
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets) or len(self.inputs) == 0:
            raise ValueError(
                f"calibration needs as many targets as inputs, at least one, got {len(self.inputs)} inputs "
                f"and {len(self.targets)} targets"
            )
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, evenly_spaced(getattr(self, name), SCORE_EXAMPLES))

    def on(self, device: torch.device) -> Calibration:
        """The same examples on a device."""
        return Calibration(self.inputs.to(device), self.targets.to(device), self.loss)

    def batches(self) -> Iterator[tuple[NetworkInputs, Any]]:
        """Pairs of at most `SCORE_BATCH` examples, in order."""
        return zip(self.inputs.split(SCORE_BATCH), self.targets.split(SCORE_BATCH), strict=True)

    def mean_loss(self, model: nn.Module) -> float:
        """The loss of the model in eval mode, batches weighted by their examples."""
        with observed(model) as network, torch.no_grad():
            losses = read_at_once([self._loss_of(network, *batch) for batch in self.batches()])
        counts = [len(inputs) for inputs, _ in self.batches()]
        return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / len(self.inputs)

    def _loss_of(self, network: nn.Module, inputs: NetworkInputs, targets: Any) -> Tensor:
        return self.loss(run(network, inputs), contents(targets))


def evenly_spaced(part: Any, most: int) -> Any:
    """At most that many examples of a tensor or `Tree`; every class is included even if they are sorted by class."""
    return part if len(part) <= most else part[torch.arange(most) * len(part) // most]
