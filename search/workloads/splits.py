"""Reading a split into tensors, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from search.user_code.randomness import seeded

Split = tuple[Tensor, Tensor]
CHUNK = 64
"""How many items are joined at a time, so that a split is never in memory twice."""
PROBES = 32
"""How many items are read two more times to see whether they change."""
SEED = 0
FEW = 64
_only_few: ContextVar[bool] = ContextVar("only_few", default=False)


@contextmanager
def only_few() -> Iterator[None]:
    """Read at most `FEW` items of a data set, evenly spaced, for commands that only look at the network.

    The first two are among them, since a network is traced on those.
    """
    before = _only_few.set(True)
    try:
        yield
    finally:
        _only_few.reset(before)


def as_tensors(split: Any, name: str) -> tuple[Split, bool]:
    """Inputs and targets of a split, and whether reading it again gives other ones.

    Global random generators have a fixed seed while a data set is read, so that it is the same each time.

    Args:
        split: a pair of tensors, a map-style data set of pairs, or a `DataLoader` over one, which is read in order.

    Raises:
        ValueError: anything else; tells what it is and what to do.
    """
    if isinstance(split, DataLoader):
        return _read(*_of_loader(split, name), name)
    if isinstance(split, IterableDataset):
        raise ValueError(
            f"split {name!r} is a stream ({type(split).__name__}): give a map-style dataset, or read it into a pair of "
            "tensors first"
        )
    if isinstance(split, tuple):
        if len(split) != 2 or not all(isinstance(part, Tensor) for part in split):
            kinds = ", ".join(type(part).__name__ for part in split)
            raise ValueError(f"split {name!r} must be a pair of tensors (inputs, targets), got ({kinds})")
        return _checked(split, name), False
    if not hasattr(split, "__getitem__") or not hasattr(split, "__len__") or isinstance(split, Mapping):
        raise ValueError(f"split {name!r} must be a pair of tensors or a map-style dataset, got {type(split).__name__}")
    return _read(split, range(len(split)), default_collate, name)


def _of_loader(loader: DataLoader[Any], name: str) -> tuple[Dataset[Any], Sequence[int], Callable[[list[Any]], Any]]:
    """Its data set, the indices that the loader visits, and the function that joins items."""
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(f"split {name!r} is a DataLoader over a stream: read it into a pair of tensors first")
    sampler = loader.sampler
    if loader.batch_size is None or not isinstance(sampler, (SequentialSampler, RandomSampler, SubsetRandomSampler)):
        raise ValueError(
            f"split {name!r} is a DataLoader with a sampler of its own ({type(sampler).__name__}): give its dataset, "
            "or a torch.utils.data.Subset of it"
        )
    dataset = loader.dataset
    if isinstance(sampler, SubsetRandomSampler):
        return dataset, sorted(sampler.indices), loader.collate_fn
    if not isinstance(dataset, Sized):
        kind = type(dataset).__name__
        raise ValueError(f"split {name!r} is a DataLoader over a {kind} that has no length: give it a __len__")
    return dataset, range(len(dataset)), loader.collate_fn


def _read(
    split: Dataset[Any], places: Sequence[int], collate: Callable[[list[Any]], Any], name: str
) -> tuple[Split, bool]:
    if len(places) == 0:
        raise ValueError(f"split {name!r} is empty: it needs at least one example")
    if _only_few.get() and len(places) > FEW:
        places = [places[0], *(places[1 + number * (len(places) - 1) // (FEW - 1)] for number in range(FEW - 1))]
    parts: list[Tensor] = []
    with seeded(SEED):
        for begin in range(0, len(places), CHUNK):
            chunk = _pair([split[place] for place in places[begin : begin + CHUNK]], collate, name)
            if not parts:
                parts = [torch.empty((len(places), *part.shape[1:]), dtype=part.dtype) for part in chunk]
            for whole, part in zip(parts, chunk, strict=True):
                if part.shape[1:] != whole.shape[1:] or part.dtype != whole.dtype:
                    raise ValueError(f"split {name!r} has items of different shapes or types, {_shapes(whole, part)}")
                whole[begin : begin + len(part)] = part
    inputs, targets = parts
    return _checked((inputs, targets), name), _changes(split, places, collate, name)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(f"{tuple(t.shape[1:])} of {t.dtype}" for t in tensors)


def _pair(items: list[Any], collate: Callable[[list[Any]], Any], name: str) -> Split:
    first = items[0]
    if isinstance(first, Mapping):
        keys = ", ".join(repr(key) for key in first)
        raise ValueError(f"split {name!r} yields mappings of {keys}: wrap it so that an item is (inputs, target)")
    if isinstance(first, (tuple, list)) and len(first) != 2:
        raise ValueError(
            f"split {name!r} yields items of {len(first)} parts: an item must be (inputs, target), several inputs "
            "packed into one tensor"
        )
    try:
        pair = collate(items)
    except (TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"split {name!r}: its items cannot be put together to tensors: {said}") from None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise ValueError(f"split {name!r} must yield pairs (inputs, target) of tensors or numbers")
    inputs, targets = pair
    return inputs, targets


def _changes(split: Dataset[Any], places: Sequence[int], collate: Callable[[list[Any]], Any], name: str) -> bool:
    """Whether items differ when they are read again under other seeds."""
    step = -(-len(places) // PROBES)
    seen = []
    for seed in (SEED + 1, SEED + 2):
        with seeded(seed):
            seen.append(_pair([split[place] for place in places[::step]], collate, name))
    return not _equal(*seen)


def _equal(first: Split, second: Split) -> bool:
    return all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        for a, b in zip(first, second, strict=True)
    )


def _checked(split: Split, name: str) -> Split:
    inputs, targets = split
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        lengths = [len(part) if part.ndim else "a single number" for part in split]
        raise ValueError(f"split {name!r} needs as many inputs as targets, got {lengths[0]} and {lengths[1]}")
    return inputs.contiguous(), targets
