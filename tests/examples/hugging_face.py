"""Handwritten digits by a vision transformer of Hugging Face, trained by its `Trainer`.

pip install 'prunefront[transformers]'
prunefront search --workload tests/examples/hugging_face.py:digits --trials 8
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

from search import Recipe, Workload
from search.adapters.hugging_face import from_hf

SPLITS = {"fit": (0, 1_000), "calibration": (1_000, 1_200), "validation": (1_200, 1_450), "test": (1_450, 1_797)}


class Digits(Dataset[dict[str, Any]]):
    """Items as the `Trainer` takes them: the network's arguments by their names, `labels` among them."""

    def __init__(self, split: str) -> None:
        images, targets = load_digits(return_X_y=True)
        part = slice(*SPLITS[split])
        self.images = torch.from_numpy(images[part]).float().reshape(-1, 1, 8, 8) / 16
        self.labels = torch.from_numpy(targets[part])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"pixel_values": self.images[number], "labels": self.labels[number]}


def network() -> nn.Module:
    """A transformer of three blocks over 16 patches of 2 x 2 pixels."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
        )
    )


def fitted() -> Digits:
    """What the `Trainer` trains on."""
    return Digits("fit")


def loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """What the study looks at outside the `Trainer`."""
    return nn.functional.cross_entropy(outputs["logits"], labels)


def share_right(outputs: dict[str, Tensor], labels: Tensor) -> float:
    """The share of digits that are told right."""
    return float((outputs["logits"].argmax(dim=1) == labels).float().mean())


def digits() -> Workload:
    """The factory named on the command line."""
    return Workload(
        name="hugging-face-digits",
        build_model=network,
        train=from_hf(fitted, {"weight_decay": 0.01, "warmup_steps": 10}),
        loss=loss,
        metric=share_right,
        recipe=Recipe(batch=32, optimizer="adamw", learning_rate=0.002, dense_epochs=40, trial_epochs=6),
        **{split: Digits(split) for split in SPLITS},
    )
