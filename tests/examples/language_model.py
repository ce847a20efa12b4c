"""A small causal transformer that tells the next character of Python's documentation; its metric is perplexity.

The text is real, and comes with every Python (`pydoc_data.topics`): 700,000 characters of the language reference.

prunefront search --workload tests/examples/language_model.py:language_model --trials 8
"""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from search import Metric, Recipe, Workload

CHARACTERS, LENGTH = 128, 48
WIDTH, HEADS, LAYERS = 48, 4, 2
SIZES = {"fit": 2_400, "calibration": 200, "validation": 400, "test": 400}
"""Split -> pieces of text, in this order: no character is in two splits."""


class Writer(nn.Module):
    """Characters and places embedded, two transformer blocks that look back only, scores of the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 3 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CHARACTERS)
        self.register_buffer("ahead", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """(n, LENGTH) -> (n, CHARACTERS, LENGTH)."""
        return self.head(self.blocks(self.characters(text) + self.places, mask=self.ahead)).transpose(1, 2)


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """The number of characters that would be as hard to choose from, if all were as likely."""
    return float(nn.functional.cross_entropy(outputs, targets).exp())


def language_model() -> Workload:
    """The factory named on the command line."""
    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    splits, start = {}, 0
    for name, size in SIZES.items():
        piece = codes[start : start + size * LENGTH + 1]
        splits[name] = piece[:-1].reshape(-1, LENGTH), piece[1:].reshape(-1, LENGTH)
        start += size * LENGTH + 1
    return Workload(
        name="language-model",
        build_model=Writer,
        metric=Metric("perplexity", perplexity, best="min", low=1),
        recipe=Recipe(batch=32, optimizer="adamw", dense_epochs=6, trial_epochs=1),
        **splits,
    )
