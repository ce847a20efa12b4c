"""The examples of a split, however they were given: held in memory, or read where a command needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pruning.calibration import evenly_spaced
from pruning.trees import NetworkInputs, Tree, contents
from search.workloads.batch_form import Batch

SEED = 0
"""Under which examples are read wherever they are to be the same each time."""


class Examples(ABC):
    """Inputs and targets of a split.

    Attributes:
        name: of the split.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many there are; None of a stream that was not read to its end yet."""

    def counted(self) -> int:
        """How many there are; a stream is read to its end for this, once."""
        return self.count if self.count is not None else sum(len(inputs) for inputs, _ in self.in_order(1))

    @property
    def has_own_batches(self) -> bool:
        """Whether its batches are as large as they come, whatever size is asked for."""
        return False

    @property
    def whole(self) -> Batch | None:
        """All of them, where they are the same each time and fit into memory; None otherwise."""
        return None

    @property
    def repeats_itself(self) -> bool:
        """Whether they are the same in every pass under the same seed."""
        return True

    @abstractmethod
    def some(self, most: int) -> Batch:
        """At most that many, the same each time: evenly spaced, or the first ones of a stream."""

    def held(self, most: int) -> Batch:
        """All of them where they are in memory, and `some` otherwise."""
        return self.whole or self.some(most)

    @abstractmethod
    def example(self) -> NetworkInputs:
        """The first two inputs. Nothing else is read."""

    @abstractmethod
    def in_order(self, size: int) -> Iterator[Batch]:
        """All of them in batches of at most that size, or of the stream's own; the same each time."""

    @abstractmethod
    def epoch_steps(self, size: int) -> int:
        """Whole batches of that size, at least 1, or batches of a stream's own that an epoch takes."""

    @abstractmethod
    def epoch(self, size: int, generator: torch.Generator, seed: int) -> Iterator[Batch]:
        """The batches of one epoch of training.

        Args:
            generator: order is drawn from it, where there is one to be drawn, before the first batch is read.
            seed: the user's code draws from global generators that have this seed.
        """

    @abstractmethod
    def given(self, size: int, generator: torch.Generator | None = None, seed: int = SEED) -> Iterator[Any]:
        """The batches of `epoch`, or without a generator those of `in_order`, as the user's code makes them."""

    @abstractmethod
    def some_given(self, most: int) -> Any:
        """One batch of at most that many examples that are spread over the split, or the first batch of a stream, as
        the user's code makes it; drawn under the same seed each time.
        """


class Indexed(Examples):
    """Examples that can be read by their places."""

    @property
    @abstractmethod
    def count(self) -> int: ...

    @abstractmethod
    def read(self, places: Tensor, seed: int = SEED) -> Batch:
        """The examples at these places, in this order; random ones as drawn under this seed."""

    def example(self) -> NetworkInputs:
        return self.read(torch.arange(min(2, self.count)))[0]

    def in_order(self, size: int) -> Iterator[Batch]:
        yield from self.read_all(list(torch.arange(self.count).split(size)))

    def epoch_steps(self, size: int) -> int:
        return max(1, self.count // size)

    def epoch(self, size: int, generator: torch.Generator, seed: int) -> Iterator[Batch]:
        order = torch.randperm(self.count, generator=generator)
        yield from self.read_all(list(order.split(size))[: self.epoch_steps(size)], seed)

    def given(self, size: int, generator: torch.Generator | None = None, seed: int = SEED) -> Iterator[Any]:
        if generator is None:
            return self.given_at(list(torch.arange(self.count).split(size)), seed)
        order = torch.randperm(self.count, generator=generator)
        return self.given_at(list(order.split(size))[: self.epoch_steps(size)], seed)

    def some_given(self, most: int) -> Any:
        return next(self.given_at([spaced(self.count, most)], SEED))

    @abstractmethod
    def given_at(self, batches: list[Tensor], seed: int) -> Iterator[Any]:
        """The examples at the places of each batch, as the user's code makes them."""

    def read_all(self, batches: list[Tensor], seed: int = SEED) -> Iterator[Batch]:
        """The examples at the places of each batch."""
        for number, places in enumerate(batches):
            yield self.read(places, seed + number)


class InMemory(Indexed):
    """Tensors, or trees of tensors, with all examples of a split.

    Args:
        as_given: the tree that the user gave; left out for a pair of inputs and targets.
    """

    def __init__(self, name: str, inputs: NetworkInputs, targets: Any, as_given: Any = None) -> None:
        super().__init__(name)
        self._whole: Batch = (inputs, targets)
        self._as_given = (contents(inputs), contents(targets)) if as_given is None else as_given

    @property
    def count(self) -> int:
        return len(self._whole[0])

    @property
    def whole(self) -> Batch:
        return self._whole

    def some(self, most: int) -> Batch:
        inputs, targets = self._whole
        return evenly_spaced(inputs, most), evenly_spaced(targets, most)

    def read(self, places: Tensor, seed: int = SEED) -> Batch:
        inputs, targets = self._whole
        return inputs[places], targets[places]

    def given_at(self, batches: list[Tensor], seed: int) -> Iterator[Any]:
        held = Tree(self._as_given)
        for places in batches:
            yield held[places.to(held.device)].tree

    def read_all(self, batches: list[Tensor], seed: int = SEED) -> Iterator[Batch]:
        device = self._whole[0].device  # to which places are copied once, not batch by batch
        for places in torch.cat(batches).to(device).split([len(places) for places in batches]):
            yield self.read(places)


def spaced(count: int, most: int) -> Tensor:
    """Places of at most that many of `count` examples, evenly spaced; the first ones of each stretch."""
    return torch.arange(count) if count <= most else torch.arange(most) * count // most
