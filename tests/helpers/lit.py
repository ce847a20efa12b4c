"""A LightningModule around a network, for tests that have Lightning."""

from __future__ import annotations

import lightning
from torch import nn


class Lit(lightning.LightningModule):
    """Trains by cross-entropy and by the optimizer that `optimizer(parameters, rate)` makes."""

    def __init__(self, network, rate, optimizer):
        super().__init__()
        self.network, self.rate, self.optimizer = network, rate, optimizer

    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), self.rate)
