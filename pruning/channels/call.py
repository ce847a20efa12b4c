"""One operation of a followed forward pass, and the notes on the pass so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.channels.labels import Axes, Labels, TensorLabels, varies
from pruning.modules import is_own

LAST, HEADS, HEADS_OF_INPUTS = range(3)
"""Which part of a divided dimension of channels shrinks: the last one, unless something else decides it; the heads of
attention, each as a whole; or the heads, each together with its share of the channels that the module takes.
"""


@dataclass(frozen=True, eq=False)
class Split:
    """A dimension of channels that a reshape divided into several.

    Attributes:
        module: name of the innermost module that was running.
    """

    labels: Tensor
    dims: tuple[int, ...]
    module: str


@dataclass(frozen=True, eq=False)
class Running:
    """A module that is running.

    Attributes:
        inputs: tensors that it was given.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...] = ()

    @property
    def label(self) -> str:
        """`TYPE 'name'`."""
        kind = type(self.module).__name__
        return f"{kind} {self.name!r}" if self.name else kind

    def sizes(self, value: int) -> Iterator[str]:
        """Attributes of a user's module that hold this number."""
        if is_own(self.module):
            yield from (name for name, held in vars(self.module).items() if type(held) is int and held == value)


@dataclass(eq=False)
class WrittenSize:
    """An attribute of a module that holds the length of a dimension of channels, such as a number of heads.

    Attributes:
        name: MODULE.ATTRIBUTE, as tensors are named.
        lines: the labels (length,) along each dimension that it may have been used for.
    """

    name: str
    lines: list[Tensor] = field(default_factory=list)


class PassNotes:
    """What is known of a forward pass so far.

    Attributes:
        emitted: weight -> its dimensions whose labels are those of some operation's outputs.
        computed: weights that were not used as they are -> where.
        divisors: arrays of labels that something is divided by, or whose root or logarithm is taken.
        splits: dimensions of channels that were divided.
        path: the modules that are running, the innermost last.
        known: the labels of every tensor that has some.
        schemes: name of a module -> which part of dimensions that it divides shrinks; `LAST` of those not named.
        attending: names of modules in which something is normalised by a softmax.
        sizes: attributes that hold lengths of dimensions of channels.
    """

    def __init__(self, tensors: Mapping[str, Tensor], labels: Labels, schemes: Mapping[str, int]) -> None:
        self.labels = labels
        self.tensors = TensorLabels(tensors, labels)
        self.emitted: dict[str, set[int]] = {}
        self.computed: dict[str, str] = {}
        self.divisors: list[Tensor] = []
        self.splits: list[Split] = []
        self.path: list[Running] = []
        self.known = WeakTensorKeyDictionary()
        self.schemes = schemes
        self.attending: set[str] = set()
        self.sizes: dict[str, WrittenSize] = {}
        for name, tensor in tensors.items():
            self.known[tensor] = self.tensors.first(name)

    @property
    def place(self) -> str:
        """` in TYPE 'name'` of the module that is running."""
        return f" in {self.path[-1].label}" if self.path else ""

    @property
    def running(self) -> Running | None:
        """The innermost module that is running."""
        return self.path[-1] if self.path else None

    def note_size(self, labels: Tensor, dim: int) -> None:
        """Note attributes of the running module that hold the length of a dimension, the only one of channels."""
        if self.running is None or any(varies(labels, other) != (other == dim) for other in range(labels.dim())):
            return
        line = labels.movedim(dim, 0).flatten(1)[:, 0]
        for attribute in self.running.sizes(len(line)):
            name = f"{self.running.name}.{attribute}" if self.running.name else attribute
            self.sizes.setdefault(name, WrittenSize(name)).lines.append(line)

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
