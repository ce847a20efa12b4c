"""Examples of a map-style data set, read where they are needed; small ones that do not change are kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from pruning.outputs import map_tensors
from pruning.trees import joined
from search.user_code.randomness import seeded
from search.workloads.batch_form import Batch, BatchForm, equal, kinds, of_kind, tensors_of
from search.workloads.examples import SEED, Indexed, InMemory, spaced

Collate = Callable[[list[Any]], Any]
CHUNK = 64
"""How many items are joined at a time while a split is read, so that it is never in memory twice."""
PROBES = 32
"""How many items are read twice, under different seeds, to see whether they change."""
MOST_BYTES = 2**30
"""A split that does not change is read once and kept, if it takes no more: 1 GiB."""


class FromDataset(Indexed):
    """Items of a data set, put together to batches of any size.

    Items that are drawn at random are drawn under a seed: in training under one of each epoch and batch, so that a
    training repeats itself and epochs differ; everywhere else under the same ones each time.

    Args:
        places: of the items, in order.
        collate: makes a batch of items.
        loader: the `DataLoader` it came in, whose worker processes read it; None reads in this process.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset[Any],
        places: Sequence[int],
        collate: Collate,
        form: BatchForm,
        loader: DataLoader[Any] | None = None,
    ) -> None:
        super().__init__(name)
        if len(places) == 0:
            raise ValueError(f"split {name!r} is empty: it needs at least one example")
        self._dataset, self._places, self._collate, self._form, self._loader = dataset, places, collate, form, loader
        self._some: dict[int, Batch] = {}

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def whole(self) -> Batch | None:
        return self._kept.whole if self._kept else None

    @property
    def changes(self) -> bool:
        """Whether reading it again under another seed gives other examples."""
        return self._looked_at[0]

    @cached_property
    def repeats_itself(self) -> bool:
        """Whether reading it again under the same seed gives the same examples: it draws from global generators."""
        return not self.changes or equal(*(self._fetch(spaced(self.count, PROBES), SEED) for _ in range(2)))

    def some(self, most: int) -> Batch:
        if self._kept:
            return self._kept.some(most)
        if most not in self._some:
            parts = list(self._fetched(list(spaced(self.count, most).split(CHUNK)), SEED))
            self._require_alike(parts)
            self._some[most] = joined([part[0] for part in parts]), joined([part[1] for part in parts])
        return self._some[most]

    def read(self, places: Tensor, seed: int = SEED) -> Batch:
        if "_kept" in vars(self) and self._kept:
            return self._kept.read(places)
        return self._fetch(places, seed)

    def read_all(self, batches: list[Tensor], seed: int = SEED) -> Iterator[Batch]:
        yield from self._kept.read_all(batches) if self._kept else self._fetched(batches, seed)

    @cached_property
    def _looked_at(self) -> tuple[bool, float]:
        """Whether items change, and the bytes of one."""
        places = spaced(self.count, PROBES)
        one, other = (self._fetch(places, seed) for seed in (SEED + 1, SEED + 2))
        return not equal(one, other), sum(tensor.nbytes for tensor in tensors_of(one)) / len(places)

    @cached_property
    def _kept(self) -> InMemory | None:
        changes, each = self._looked_at
        if changes or each * self.count > MOST_BYTES:
            return None
        wholes: list[Tensor] = []
        first: Batch | None = None
        begin = 0
        for part in self._fetched(list(torch.arange(self.count).split(CHUNK)), SEED):
            if first is None:
                first = part
                wholes = [tensor.new_empty((self.count, *tensor.shape[1:])) for tensor in tensors_of(part)]
            self._require_alike([first, part])
            for whole, tensor in zip(wholes, tensors_of(part), strict=True):
                whole[begin : begin + len(tensor)] = tensor
            begin += len(part[0])
        assert first is not None  # it is not empty
        filled = iter(wholes)
        inputs, targets = (map_tensors(part, lambda _: next(filled)) for part in first)
        return InMemory(self.name, inputs, targets)

    def _require_alike(self, parts: list[Batch]) -> None:
        for part in parts[1:]:
            if not of_kind(parts[0], part):
                raise ValueError(
                    f"split {self.name!r} has items of different shapes or types, {kinds(parts[0])} and {kinds(part)}"
                )

    def _fetch(self, places: Tensor, seed: int) -> Batch:
        return self._form.parts(default_convert(self._collated(places, seed)), self.name)

    def _collated(self, places: Tensor, seed: int) -> Any:
        with seeded(seed):
            items = [self._dataset[self._places[place]] for place in places.tolist()]
            try:
                return self._collate(items)
            except (TypeError, RuntimeError) as error:
                said = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"split {self.name!r}: its items cannot be put together to tensors, give a DataLoader with a "
                    f"collate_fn that can: {said}"
                ) from None

    def _fetched(self, batches: list[Tensor], seed: int) -> Iterator[Batch]:
        for batch in self.given_at(batches, seed):
            yield self._form.parts(default_convert(batch), self.name)

    def given_at(self, batches: list[Tensor], seed: int) -> Iterator[Any]:
        """Batches in their order, read ahead by the loader's workers if it has any."""
        ahead = _Batches(self._collated, batches, seed)
        if self._loader is None or not self._loader.num_workers:
            collated: Any = map(ahead.__getitem__, range(len(batches)))
        else:
            collated = DataLoader(
                ahead,
                batch_size=None,
                num_workers=self._loader.num_workers,
                prefetch_factor=self._loader.prefetch_factor,
                worker_init_fn=self._loader.worker_init_fn,
                multiprocessing_context=self._loader.multiprocessing_context,
                generator=torch.Generator(),  # of its own: the global one belongs to training
            )
        yield from collated


class _Batches(Dataset[Any]):
    """Whole batches as items, each read under a seed of its own, by whichever process."""

    def __init__(self, collated: Callable[[Tensor, int], Any], batches: list[Tensor], seed: int) -> None:
        self._collated, self._batches, self._seed = collated, batches, seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        return self._collated(self._batches[number], self._seed + number)
