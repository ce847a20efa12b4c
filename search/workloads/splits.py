"""How a split may be given, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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

from pruning.outputs import tensors_in
from search.workloads.batch_form import BatchForm
from search.workloads.datasets import FromDataset
from search.workloads.examples import Examples, InMemory
from search.workloads.streams import Stream, of_iterable, of_loader

Split = tuple[Tensor, Tensor]
FORMS = (
    "a pair of tensors, a map-style dataset, a DataLoader, or a function that returns the batches of a pass, such as "
    "a generator function"
)
_only_looks: ContextVar[bool] = ContextVar("only_looks", default=False)


@contextmanager
def only_the_example() -> Iterator[None]:
    """Inside, of splits that would have to be read nothing is looked at but the example input, for commands that are
    about the network alone.
    """
    before = _only_looks.set(True)
    try:
        yield
    finally:
        _only_looks.reset(before)


def may_be_read(split: Split | Examples) -> bool:
    """Whether a split may be looked at: always, but for those that `only_the_example` is about."""
    return isinstance(split, tuple | InMemory) or not _only_looks.get()


def as_examples(split: Split | Examples, name: str) -> Examples:
    """The examples of a workload's split."""
    return split if isinstance(split, Examples) else InMemory(name, *split)


def split_of(
    given: Any, name: str, form: BatchForm, steps_per_epoch: int | None = None, endless: bool = False
) -> Split | Examples:
    """A split as a workload holds it: tensors of inputs and targets as they are given, and `Examples` of anything else.

    Nothing is read.

    Args:
        steps_per_epoch: of a stream that networks are trained on, how many batches count as an epoch.
        endless: whether nobody has to know that.

    Raises:
        ValueError: something else, or an empty data set; tells what it is and what to do.
    """
    found = given if isinstance(given, Examples) else _split_of(given, name, form, steps_per_epoch)
    if steps_per_epoch is not None and not isinstance(found, Stream):
        raise ValueError(
            f"steps_per_epoch={steps_per_epoch} is for a stream, and split {name!r} has a length: leave it out"
        )
    if isinstance(found, Stream) and name == "fit" and not endless:
        found.require_length()
    return found


def _split_of(given: Any, name: str, form: BatchForm, steps: int | None) -> Split | Examples:
    if isinstance(given, DataLoader):
        return _of_loader(given, name, form, steps)
    if isinstance(given, IterableDataset):
        return of_iterable(name, given, form, steps)
    if isinstance(given, tuple):
        return _in_memory(given, name, form)
    if isinstance(given, Mapping):
        return InMemory(name, *form.parts(given, name), given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, type):
        return FromDataset(name, given, range(len(given)), default_collate, form)
    if callable(given):
        return Stream(name, lambda size, seed: given(), form, steps=steps)
    if isinstance(given, Iterator):
        raise ValueError(
            f"split {name!r} is a {type(given).__name__}, which can be gone through only once: give the function that "
            "makes it"
        )
    raise ValueError(f"split {name!r} must be {FORMS}, got {type(given).__name__}")


def _in_memory(given: tuple[Any, ...], name: str, form: BatchForm) -> Split | Examples:
    if len(given) < 2 or not all(any(True for _ in tensors_in(part)) for part in given):
        kinds = ", ".join(type(part).__name__ for part in given)
        remedy = "" if any(isinstance(part, str | bytes) for part in given) else ": make tensors by torch.as_tensor"
        raise ValueError(f"split {name!r} must be a pair of tensors (inputs, targets), got ({kinds}){remedy}")
    plain = form.forward is None and len(given) == 2 and all(isinstance(part, Tensor) for part in given)
    lengths = [len(part) if part.ndim else "a single number" for part in given] if plain else []
    if plain and (lengths[0] != lengths[1] or lengths[0] == 0 or isinstance(lengths[0], str)):
        raise ValueError(f"split {name!r} needs as many inputs as targets, got {lengths[0]} and {lengths[1]}")
    inputs, targets = form.parts(given, name)
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return inputs.contiguous(), targets
    if not len(inputs):
        raise ValueError(f"split {name!r} is empty: it needs at least one example")
    return InMemory(name, inputs, targets, given)


def _of_loader(loader: DataLoader[Any], name: str, form: BatchForm, steps: int | None) -> Examples:
    """A loader's data set, where order and batches are as usual and may be ours; else its batches as they come."""
    dataset: Dataset[Any] = loader.dataset
    if loader.batch_size is None or not _is_usual(loader) or isinstance(dataset, IterableDataset):
        return of_loader(name, loader, form, steps)
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    places: Sequence[int]
    if isinstance(loader.sampler, SubsetRandomSampler):
        places = sorted(loader.sampler.indices)
    elif isinstance(dataset, Sized):
        places = range(len(dataset))
    else:
        kind = type(dataset).__name__
        raise ValueError(f"split {name!r} is a DataLoader over a {kind} that has no length: give it a __len__")
    return FromDataset(name, dataset, places, collate, form, loader)


def _is_usual(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives every example of its data set once, or those of a list, as the data set has them.

    Classes of the user's, derived from PyTorch's, may do anything: change batches, or choose among examples.
    """
    sampler: Any = loader.sampler
    if type(loader).__iter__ is not DataLoader.__iter__:
        return False
    if type(sampler) is SubsetRandomSampler:
        return True
    if type(sampler) not in (SequentialSampler, RandomSampler) or getattr(sampler, "replacement", False):
        return False
    return not isinstance(loader.dataset, Sized) or len(sampler) == len(loader.dataset)
