"""The recipe: how a workload's networks are trained and fine-tuned, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from spaces.validation import is_number, unknown

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"dense_learning_rate": 0.1, "learning_rate": 0.05, "weight_decay": 5e-4, "momentum": 0.9},
    "adamw": {"dense_learning_rate": 0.01, "learning_rate": 0.01, "weight_decay": 0.01, "betas": (0.9, 0.999)},
}
"""Optimizer -> what its recipes have where they say nothing else."""
BY_DAMAGE, FIXED = "damage", "fixed"
RATES = (BY_DAMAGE, FIXED)
FINAL_LENGTH = 3
"""Epochs of a final run where a recipe says nothing, in trials; from there on curves are flat unless most is lost."""
FORMER_EPOCHS, FORMER_RATES = 2, {"sgd": 0.05, "adamw": 0.003}
"""Final epochs, and rates of fine-tunes by optimizer, of recipes with a fixed rate that do not say."""
_OF_THE_OPTIMIZER: Any = None
"""For a part that is left out and that every optimizer has."""
_OF_THE_TRIALS: Any = None
"""For final epochs that are left out."""
_POSITIVE = ("dense_epochs", "trial_epochs", "final_epochs", "dense_learning_rate", "learning_rate")
_ADDED = {"bn_l1": 0.0, "optimizer": "sgd", "betas": None, "momentum": None, "rate": FIXED}
"""Fields left out of a stored recipe while they have these values, so that recipes from before these fields keep their
hash.
"""


@dataclass(frozen=True)
class Recipe:
    """An optimizer and a one-cycle learning rate; the network of the last step counts.

    Fields that depend on the optimizer and are left out take their value from `OPTIMIZERS`. A field that only the other
    optimizer has (`betas` for `sgd`, `momentum` for `adamw`) is None.

    Attributes:
        batch: examples a step; an incomplete last batch of an epoch is dropped.
        dense_epochs: epochs of the dense model's own training.
        trial_epochs: epochs of a trial's fine-tune; fractions are allowed.
        final_epochs: epochs of a finalist's fine-tune; 3 times those of a trial, or 2 with a fixed rate.
        dense_learning_rate: peak of the dense training; 0.1 for `sgd`, 0.01 for `adamw`.
        learning_rate: peak of fine-tunes of networks that lost most; 0.05 for `sgd`, 0.01 for `adamw` (0.003 with a
            fixed rate).
        warmup: share of the steps in which the learning rate rises.
        momentum: for `sgd`, in [0, 1); 0.9.
        weight_decay: on every parameter. 5e-4 for `sgd`, where it is part of the gradient; 0.01 for `adamw`, where it
            is separate (Loshchilov and Hutter, arXiv 1711.05101): each step, weights shrink by learning rate x decay.
        bn_l1: weight of the L1 norm of all BatchNorm scales in the training loss (Network Slimming, arXiv 1708.06519,
            uses 1e-4 or 1e-5), so that the criterion `bn-scale` finds channels that matter little. It acts in the dense
            training, and in fine-tunes until the last channels are chosen; 0 leaves it out.
        optimizer: `sgd` with Nesterov momentum, or `adamw`.
        rate: `damage` (a fine-tune's peak follows from what pruning and rounding did to the calibration loss, between a
            thirtieth of `learning_rate` and all of it) or `fixed` (always `learning_rate`).
        betas: for `adamw`: decay of the running means of gradient and squared gradient, each in [0, 1); (0.9, 0.999).

    Raises:
        ValueError: an unknown optimizer or rate (the nearest is named), a field outside its range, or one that the
            optimizer does not have.

    >>> Recipe(optimizer="adamw").learning_rate, Recipe().learning_rate
    (0.01, 0.05)
    """

    batch: int = 128
    dense_epochs: float = 10
    trial_epochs: float = 1
    final_epochs: float = _OF_THE_TRIALS
    dense_learning_rate: float = _OF_THE_OPTIMIZER
    learning_rate: float = _OF_THE_OPTIMIZER
    warmup: float = 0.2
    momentum: float | None = None
    weight_decay: float = _OF_THE_OPTIMIZER
    bn_l1: float = 0.0
    optimizer: str = "sgd"
    betas: tuple[float, float] | None = None
    rate: str = BY_DAMAGE

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("recipe optimizer", self.optimizer, OPTIMIZERS))
        if self.rate not in RATES:
            raise ValueError(unknown("recipe rate", self.rate, RATES))
        for name, value in self._defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"recipe batch must be a whole number >= 1, got {self.batch!r}; the default is 128")
        for name in _POSITIVE:
            if not is_number(value := getattr(self, name)) or value <= 0:
                raise ValueError(f"recipe {name} must be a number > 0, got {value!r}{self._usual(name)}")
        for name in ("weight_decay", "bn_l1"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"recipe {name} must be >= 0, got {value!r}; 0 leaves it out")
        if not _is_below_one(self.warmup):
            raise ValueError(f"recipe warmup must satisfy 0 <= warmup < 1, got {self.warmup!r}; the default is 0.2")
        self._check_memory()

    def _defaults(self) -> dict[str, Any]:
        """Of the optimizer, and of everything else that depends on other fields."""
        found = dict(OPTIMIZERS[self.optimizer])
        if self.rate == FIXED:
            return {**found, "learning_rate": FORMER_RATES[self.optimizer], "final_epochs": FORMER_EPOCHS}
        ours = is_number(self.trial_epochs)  # else it is refused by itself
        return {**found, "final_epochs": FINAL_LENGTH * self.trial_epochs if ours else 1}

    def former(self) -> list[Recipe]:
        """The recipes that the same arguments may have meant before rates followed damage."""
        fixed = replace(self, rate=FIXED)
        parts: dict[str, Any] = {"learning_rate": FORMER_RATES[self.optimizer], "final_epochs": FORMER_EPOCHS}
        left_out = {name: value for name, value in parts.items() if getattr(self, name) == self._defaults()[name]}
        return [fixed, *(replace(fixed, **{name: left_out[name] for name in names}) for names in _choices(left_out))]

    def of_study(self, epochs: float | None, learning_rate: float | None, batch: int | None) -> Recipe:
        """The recipe with what a study's options say in its place.

        `epochs` are a trial's; a final run keeps its length, but is never shorter than a trial.

        >>> found = Recipe(trial_epochs=1).of_study(epochs=5, learning_rate=None, batch=64)
        >>> found.trial_epochs, found.final_epochs, found.learning_rate, found.batch
        (5, 5, 0.05, 64)
        """
        lengths: dict[str, float] = (
            {} if epochs is None else {"trial_epochs": epochs, "final_epochs": max(epochs, self.final_epochs)}
        )
        return self._with(lengths, learning_rate, batch)

    def of_final(self, epochs: float | None, learning_rate: float | None, batch: int | None) -> Recipe:
        """Likewise of one fine-tune of full length, which takes that many epochs."""
        return self._with({} if epochs is None else {"final_epochs": epochs}, learning_rate, batch)

    def _with(self, lengths: Mapping[str, Any], learning_rate: float | None, batch: int | None) -> Recipe:
        rate = self.learning_rate if learning_rate is None else learning_rate
        return replace(self, **lengths, learning_rate=rate, batch=self.batch if batch is None else batch)

    def _check_memory(self) -> None:
        """Check the fields that only one optimizer has: momentum of `sgd`, betas of `adamw`."""
        if self.optimizer == "sgd":
            if self.betas is not None:
                raise ValueError(f"recipe betas have no effect on sgd, got {self.betas!r}: leave them out, or None")
            if not _is_below_one(self.momentum):
                raise ValueError(f"recipe momentum must satisfy 0 <= momentum < 1, got {self.momentum!r}; usual is 0.9")
            return
        if self.momentum is not None:
            raise ValueError(
                f"recipe momentum has no effect on {self.optimizer}, got {self.momentum!r}: leave it out, or None "
                "(and give learning rates and weight_decay anew where they were those of sgd)"
            )
        pair = tuple(self.betas) if isinstance(self.betas, Sequence) else ()
        if len(pair) != 2 or not all(map(_is_below_one, pair)):
            raise ValueError(f"recipe betas must be two numbers in [0, 1), got {self.betas!r}; usual are (0.9, 0.999)")
        object.__setattr__(self, "betas", pair)

    def _usual(self, name: str) -> str:
        usual = self._defaults().get(name) if name != "final_epochs" else None
        return f"; the default of {self.optimizer} is {usual:g}" if usual else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the fields added later that still have their first value."""
        parts = {key: value for key, value in asdict(self).items() if key not in _ADDED or value != _ADDED[key]}
        return parts | ({"betas": list(self.betas)} if self.betas else {})  # as JSON gives it back


def _choices(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Every choice of one or more of the names."""
    held = tuple(names)
    return [choice for count in range(1, len(held) + 1) for choice in combinations(held, count)]


def _is_below_one(value: object) -> bool:
    return is_number(value) and 0 <= value < 1


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of 0-based `step`: a linear rise to `peak`, then a cosine down to (almost) 0.

    >>> [round(one_cycle(s, 10, 1.0, 0.2), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 0.962, 0.309, 0.0]
    """
    rise = math.floor(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    fall = steps - rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / fall))
