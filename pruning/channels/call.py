"""One operation of a followed forward pass, and the notes on the pass so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.channels.labels import Axes, Labels, TensorLabels


@dataclass(frozen=True, eq=False)
class Split:
    """A dimension of channels that a reshape divided into several."""

    labels: Tensor
    dims: tuple[int, ...]


class PassNotes:
    """What is known of a forward pass so far.

    Attributes:
        emitted: weight -> its dimensions whose labels are those of some operation's outputs.
        computed: weights that were not used as they are -> where.
        divisors: arrays of labels that something is divided by, or whose root or logarithm is taken.
        splits: dimensions of channels that were divided.
        path: the modules that are running, as `TYPE 'name'`, the innermost last.
        known: the labels of every tensor that has some.
    """

    def __init__(self, tensors: Mapping[str, Tensor], labels: Labels) -> None:
        self.labels = labels
        self.tensors = TensorLabels(tensors, labels)
        self.emitted: dict[str, set[int]] = {}
        self.computed: dict[str, str] = {}
        self.divisors: list[Tensor] = []
        self.splits: list[Split] = []
        self.path: list[str] = []
        self.known = WeakTensorKeyDictionary()
        for name, tensor in tensors.items():
            self.known[tensor] = self.tensors.first(name)

    @property
    def place(self) -> str:
        """` in TYPE 'name'` of the module that is running."""
        return f" in {self.path[-1]}" if self.path else ""

    def of(self, value: Any) -> Axes | Tensor | None:
        return self.known.get(value) if isinstance(value, Tensor) else None

    def elements_of(self, value: Any) -> Tensor | None:
        """Labels of a tensor's elements. A weight whose elements are asked for is noted as not used as it is."""
        found = self.of(value)
        if not isinstance(found, Axes):
            return found
        self.computed.setdefault(found.name, self.place)
        return self.tensors.elements(found)


@dataclass(eq=False)
class Call:
    """One operation of the pass.

    Attributes:
        notes: what is known of the pass; the rules of operations add to it.
        name: such as `convolution`, without a trailing underscore.
        out: what it returned.
    """

    notes: PassNotes
    name: str
    operator: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    @property
    def labels(self) -> Labels:
        return self.notes.labels

    def of(self, value: Any) -> Tensor | None:
        """Labels of the elements of a tensor; None if it is not a tensor or has no labels."""
        return self.notes.elements_of(value)

    def raw(self, value: Any) -> Axes | Tensor | None:
        return self.notes.of(value)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def on_labels(self, labels: Tensor) -> Any:
        """The operation itself, applied to the labels of its first argument."""
        args, kwargs = tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, (self.args[1:], dict(self.kwargs)))
        return self.operator(labels, *args, **kwargs)

    def block(self, labels: Tensor | None, reason: str) -> None:
        if labels is not None:
            self.labels.block(labels, f"{reason}{self.notes.place}")

    def hint(self, labels: Tensor | None, reason: str) -> None:
        if labels is not None:
            self.labels.hint(labels, f"{reason}{self.notes.place}")
