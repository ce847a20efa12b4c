"""Numbered labels of tensor elements, and which of them can only leave a network together.

A label is a whole number >= 1 of a `Labels` object; 0 marks elements that never leave. Labels of a tensor are an int32
tensor of its shape on the CPU. A dimension along which all labels are equal is stored once (`Tensor.expand`), so that
labels of an activation take no more memory than its channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

MOST = 2**22
"""The most labels of one tensor; no tensor other than a weight is divided into so many parts."""


class Labels:
    """Makes labels, joins them, and notes what keeps them from leaving."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, dtype=np.int32)
        self._used = 1
        self._blocks: list[tuple[np.ndarray, str]] = []
        self._hints: list[tuple[np.ndarray, str]] = []

    @property
    def count(self) -> int:
        """One more than the largest label made."""
        return self._used

    def new(self, *shape: int) -> Tensor:
        """Labels for a tensor of this shape, one an element."""
        count = prod(shape)
        while self._used + count > len(self._parents):
            rest = np.arange(len(self._parents), 2 * len(self._parents) + 1024, dtype=np.int32)
            self._parents = np.concatenate([self._parents, rest])
        first, self._used = self._used, self._used + count
        return torch.arange(first, self._used, dtype=torch.int32).reshape(shape)

    def roots(self, labels: Tensor) -> Tensor:
        """For each label, the one that stands for all labels joined with it."""
        narrow = narrowed(labels)
        return torch.from_numpy(self._roots(narrow.numpy())).expand(labels.shape)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Let labels at equal positions, after broadcasting, leave only together."""
        first, second = torch.broadcast_tensors(first, second)
        single = [one == other == 0 for one, other in zip(first.stride(), second.stride(), strict=True)]
        for dim, is_single in enumerate(single):
            if is_single:
                first, second = (
                    first.narrow(dim, 0, min(1, first.shape[dim])),
                    second.narrow(dim, 0, min(1, second.shape[dim])),
                )
        one, other = first.numpy().ravel(), second.numpy().ravel()
        both = (one > 0) & (other > 0)
        one, other = one[both], other[both]
        while one.size:
            one, other = self._roots(one), self._roots(other)
            differ = one != other
            one, other = one[differ], other[differ]
            np.minimum.at(self._parents, np.maximum(one, other), np.minimum(one, other))

    def join_along(self, labels: Tensor, *dims: int) -> Tensor:
        """Join all labels that lie on one line along these dimensions; returns one label for each line."""
        for dim in dims:
            if varies(labels, dim):
                shape = [1 if place == dim % labels.dim() else length for place, length in enumerate(labels.shape)]
                line = (
                    narrowed(labels).amax(dim, keepdim=True).expand(shape)
                )  # not the first, which may be 0: that joins nothing
                self.join(labels, line)
                labels = line
            else:
                labels = labels.narrow(dim, 0, 1)
        return labels

    def block(self, labels: Tensor, reason: str) -> None:
        """Let these labels stay forever."""
        self._blocks.append((_distinct(labels), reason))

    def stays(self, labels: Tensor) -> bool:
        """Whether all of these labels are known to stay forever."""
        blocked = [noted for noted, _ in self._blocks]
        return bool(blocked) and bool(
            np.isin(self._roots(_distinct(labels)), self._roots(np.concatenate(blocked))).all()
        )

    def hint(self, labels: Tensor, reason: str) -> None:
        """Remember `reason` as the likely cause, told if trying the removal shows that these labels cannot leave."""
        self._hints.append((_distinct(labels), reason))

    def blocks(self) -> dict[int, str]:
        """Root of labels that stay -> the first reason."""
        return self._first_reasons(self._blocks)

    def hints(self) -> dict[int, str]:
        """Root -> the last hint."""
        return self._first_reasons(reversed(self._hints))

    def _first_reasons(self, noted: Iterable[tuple[np.ndarray, str]]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for labels, reason in noted:
            for root in np.unique(self._roots(labels)).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def _roots(self, labels: np.ndarray) -> np.ndarray:
        found = self._parents[labels]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parents[labels] = found
        return found


class Axes:
    """The labels of an unchanged weight: one for each index of each dimension, instead of one for each element.

    Attributes:
        name: of the tensor in the model.
        dims: for each dimension as it is after permutations, which dimension of the stored tensor it is.
        labels: for each of these dimensions, the labels of its indices.
    """

    def __init__(self, name: str, dims: tuple[int, ...], labels: tuple[Tensor, ...]) -> None:
        self.name, self.dims, self.labels = name, dims, labels

    def permuted(self, order: tuple[int, ...]) -> Axes:
        return Axes(self.name, tuple(self.dims[d] for d in order), tuple(self.labels[d] for d in order))


class TensorLabels:
    """The labels of a model's parameters and buffers.

    Args:
        tensors: name -> tensor, each tensor once.
    """

    def __init__(self, tensors: Mapping[str, Tensor], labels: Labels) -> None:
        self._labels = labels
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._axes = {name: tuple(labels.new(n) for n in shape) for name, shape in self._shapes.items()}
        self._elements: dict[str, Tensor] = {}
        self._ranges = [0, labels.count]

    def first(self, name: str) -> Axes | Tensor:
        """The labels of an unchanged tensor."""
        shape, axes = self._shapes[name], self._axes[name]
        if len(shape) > 1:
            return Axes(name, tuple(range(len(shape))), axes)
        return axes[0] if shape else torch.zeros((), dtype=torch.int32)

    def elements(self, axes: Axes) -> Tensor | None:
        """Labels of a weight's elements, in its present order of dimensions; None if there are too many.

        If only one dimension is longer than 1, these are the labels of its indices.
        """
        shape, own = self._shapes[axes.name], self._axes[axes.name]
        longer = [dim for dim, length in enumerate(shape) if length != 1]
        if len(longer) < 2:
            found = own[longer[0] if longer else 0].view(shape)
        elif prod(shape) > MOST:
            return None
        else:
            if axes.name not in self._elements:
                self._elements[axes.name] = self._labels.new(*shape)
                self._ranges += [self._labels.count - prod(shape), self._labels.count]
            found = self._elements[axes.name]
        return found.permute(axes.dims)

    def own(self, labels: Tensor) -> bool:
        """Whether these are labels of a parameter or buffer, rather than of a layer's output."""
        largest = int(labels.max()) if labels.numel() else 0
        return any(first <= largest < end for first, end in zip(self._ranges[::2], self._ranges[1::2], strict=True))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def computed_from(self, labels: Tensor) -> str | None:
        """The weight whose elements have these labels; None if there is none."""
        largest = int(labels.max()) if labels.numel() else 0
        for name, elements in self._elements.items():
            first = int(elements.flatten()[0])
            if first <= largest < first + elements.numel():
                return name
        return None

    def any_of(self, name: str, labels: set[int]) -> bool:
        """Whether one of these labels is one of this tensor."""
        arrays = (*self._axes[name], self._elements.get(name, torch.zeros(0)))
        return any(not labels.isdisjoint(array.flatten().tolist()) for array in arrays)

    def index_roots(self, name: str, dim: int) -> list[int]:
        """For each index of a dimension, the root of its label."""
        return self._labels.roots(self._axes[name][dim]).tolist()

    def of_indices(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """(name, dimension, root of each of its indices), once elements that follow one dimension have passed their
        labels to it.
        """
        mixed = set()
        for name, elements in self._elements.items():
            roots = self._labels.roots(elements)
            varied = [dim for dim in range(roots.dim()) if varies(roots, dim)]
            if len(varied) == 1:
                (dim,) = varied
                line = roots.movedim(dim, 0).flatten(1)[:, 0]
                self._labels.join(line, self._axes[name][dim])
            else:
                mixed.add(name)
        for name, axes in self._axes.items():
            for dim, labels in enumerate(axes):
                if len(labels) > 1:
                    yield name, dim, self._labels.roots(labels).numpy()
        for name in mixed:
            yield name, -1, self._labels.roots(self._elements[name]).numpy().ravel()


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0 or not labels.numel():
        return False
    narrow = narrowed(labels)
    return bool((narrow != narrow.narrow(dim, 0, 1)).any())


def compacted(labels: Tensor) -> Tensor:
    """The same labels, expanded along every dimension in which they do not differ."""
    narrow = labels
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and not varies(narrow, dim):
            narrow = narrow.narrow(dim, 0, 1)
    return narrow.expand(labels.shape)


def narrowed(labels: Tensor) -> Tensor:
    """The labels at one index of each dimension along which they are expanded."""
    for dim in range(labels.dim()):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _distinct(labels: Tensor) -> np.ndarray:
    found = np.unique(narrowed(labels).numpy())
    return found[found > 0]
