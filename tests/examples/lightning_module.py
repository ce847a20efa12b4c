"""Handwritten digits by a LightningModule as it stands, with its own optimizer, schedule and clipped gradients.

pip install 'prunefront[lightning]'
prunefront search --workload tests/examples/lightning_module.py:digits --trials 8
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from search import Recipe, Run, Workload
from search.adapters.lightning_trainer import from_lightning

SPLITS = {"fit": (0, 1_000), "calibration": (1_000, 1_200), "validation": (1_200, 1_450), "test": (1_450, 1_797)}


class LitDigits(lightning.LightningModule):
    """What a Lightning user has: a network, its training step, its optimizer and schedule."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        self.network, self.rate = network, rate

    def training_step(self, batch: Any, number: int) -> Tensor:
        images, digits = batch
        return nn.functional.cross_entropy(self.network(images), digits, label_smoothing=0.05)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def network() -> nn.Module:
    """Three convolutions with GELUs, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.GELU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.GELU(),
        nn.Conv2d(48, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.GELU(),
        nn.Flatten(), nn.Linear(48 * 4, 96), nn.GELU(), nn.Linear(96, 10),
    )  # fmt: skip


def lit(model: nn.Module, run: Run) -> LitDigits:
    """The module around the network that a study trains; its rate is the run's."""
    return LitDigits(model, run.learning_rate)


def digits() -> Workload:
    """The factory named on the command line."""
    images, targets = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(targets)
    return Workload(
        name="lightning-digits",
        build_model=network,
        train=from_lightning(lit, gradient_clip_val=1.0),
        recipe=Recipe(batch=32, learning_rate=0.004, dense_epochs=8, trial_epochs=3),
        **{split: (x[start:end], y[start:end]) for split, (start, end) in SPLITS.items()},
    )
