"""Which of three voices speaks in half a second of sound: a small network of 1-D convolutions, as keyword spotters are.

The recordings are real, 8 kHz, in English, French and Russian; Debian ships them:

apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-fr-wav asterisk-core-sounds-ru-wav
prunefront search --workload tests/examples/speech.py:speech --trials 8
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from search import Recipe, Workload

SOUNDS = Path("/usr/share/asterisk/sounds")
VOICES = ("en_US_f_Allison", "fr_CA_f_June", "ru_RU_f_IvrvoiceRU")
LENGTH = 4_000
"""Samples of an example."""
QUIET = 0.02
"""Root mean square of a piece that counts as silence; the loudest sound is 1."""
PARTS = {"fit": (0, 1, 2, 3, 4, 5), "calibration": (6,), "validation": (7,), "test": (8, 9)}
"""Split -> the recordings in it, by the last digit of their place: no recording is in two splits."""


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise convolution over 9 steps, then a pointwise one."""
    return nn.Sequential(
        nn.Conv1d(inputs, inputs, 9, stride, 4, groups=inputs, bias=False),
        nn.BatchNorm1d(inputs),
        nn.ReLU(),
        nn.Conv1d(inputs, outputs, 1, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
    )


class Listener(nn.Module):
    """A filter bank that is learnt, four separable blocks, the mean over time, three voices."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Sequential(nn.Conv1d(1, 32, 64, 16, bias=False), nn.BatchNorm1d(32), nn.ReLU())
        widths = [(32, 48, 2), (48, 64, 2), (64, 64, 1), (64, 96, 2)]
        self.blocks = nn.Sequential(*(separable(*width) for width in widths))
        self.head = nn.Linear(96, len(VOICES))

    def forward(self, sound: Tensor) -> Tensor:
        return self.head(self.blocks(self.filters(sound)).mean(dim=2))


def pieces(path: Path) -> Tensor:
    """The pieces of a recording that are not silent, (n, 1, LENGTH), at most two."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    cut = torch.from_numpy(samples[: len(samples) // LENGTH * LENGTH]).reshape(-1, 1, LENGTH)
    return cut[cut.square().mean(dim=(1, 2)).sqrt() > QUIET][:2]


def split(name: str) -> tuple[Tensor, Tensor]:
    """Sounds (n, 1, LENGTH) and voices (n,)."""
    sounds, voices = [], []
    for voice, folder in enumerate(VOICES):
        recordings = sorted((SOUNDS / folder).rglob("*.wav"))
        if not recordings:
            raise FileNotFoundError(f"no recordings in {SOUNDS / folder}: apt-get install the packages named above")
        for place, path in enumerate(recordings):
            if place % 10 in PARTS[name]:
                sounds.append(pieces(path))
                voices += [voice] * len(sounds[-1])
    return torch.cat(sounds), torch.tensor(voices)


def speech() -> Workload:
    """The factory named on the command line."""
    return Workload(
        name="speech",
        build_model=Listener,
        recipe=Recipe(batch=32, dense_epochs=8, trial_epochs=2),
        **{name: split(name) for name in PARTS},
    )
