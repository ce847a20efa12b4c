"""What a batch of the user's holds: the inputs of the network, and the targets of loss and metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.outputs import describe, on_cpu, tensors_in
from pruning.trees import ModelInputs, NetworkInputs, Tree, contents

TARGETS = ("labels", "label", "targets", "target", "y")
"""Entries of a mapping that are taken for the targets where the workload names none."""
Forward = Callable[[nn.Module, Any], Any]
Batch = tuple[NetworkInputs, Any]
"""Inputs and targets of some examples; targets are a tensor or a `Tree`."""


@dataclass(frozen=True)
class BatchForm:
    """How batches are taken apart.

    A batch is (inputs, targets), (several, inputs, targets) or a mapping in which the targets have a name. Inputs, and
    targets too, may be tensors in tuples, lists and mappings, each with an entry for each example in its first
    dimension. Entries of mappings that hold no tensor, such as file names, are left out.

    Attributes:
        forward: (model, batch) -> outputs, where a network is not called on the inputs as they are.
        targets: of a mapping, the name of the targets, or the names of several.
    """

    forward: Forward | None = None
    targets: str | tuple[str, ...] | None = None

    def parts(self, batch: Any, split: str) -> Batch:
        """Inputs and targets of a batch, on the CPU; a placement says where they are used.

        Raises:
            ValueError: a batch of another form, or tensors of different numbers of examples.
        """
        inputs, targets = self._apart(batch, split)
        found = on_cpu((self.inputs(inputs if self.forward is None else batch), _targets(targets)))
        for part, name in zip(found, ("inputs", "targets"), strict=True):
            if not any(tensor.ndim for tensor in tensors_in(contents(part))):
                could = _possible_targets(batch) if name == "targets" and isinstance(batch, Mapping) else []
                named = "; name one that does, " + " or ".join(map(repr, could)) + ", by targets= in the workload"
                lists = _remedy_of_lists(targets) if name == "targets" else ""
                raise ValueError(
                    f"split {split!r} yields {name} that hold no tensor of examples: {describe(batch)}"
                    f"{named if could else lists}"
                )
        sizes = {len(tensor): None for part in found for tensor in tensors_in(contents(part)) if tensor.ndim}
        if len(sizes) > 1:
            first, other, *_ = sizes
            raise ValueError(
                f"split {split!r} needs as many inputs as targets, got {first} and {other}"
                if self.forward is None and all(isinstance(part, Tensor) for part in found)
                else f"split {split!r} yields tensors of {first} and of {other} examples in one batch: all of them "
                f"need an entry for each example in their first dimension{_remedy_of_one_each(targets, first)}"
            )
        return found

    def inputs(self, inputs: Any) -> NetworkInputs:
        """What the network is called on, of inputs or, where there is a `forward`, of a whole batch."""
        if self.forward is None and isinstance(inputs, Tensor | ModelInputs):
            return inputs
        if isinstance(inputs, ModelInputs):
            return ModelInputs(inputs.tree, self.forward)
        return ModelInputs(_cleaned(inputs), self.forward)

    def _apart(self, batch: Any, split: str) -> tuple[Any, Any]:
        if isinstance(batch, Mapping):
            return self._of_mapping(batch, split)
        if self.targets is not None:
            raise ValueError(f"split {split!r} yields {describe(batch)}, targets={self.targets!r} needs mappings")
        if isinstance(batch, (tuple, list)) and len(batch) > 1:
            return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
        if self.forward is not None and isinstance(batch, Tensor):
            return batch, batch
        raise ValueError(
            f"split {split!r} must yield pairs (inputs, targets) of tensors or numbers, several inputs and targets, or "
            f"mappings, got {describe(batch)}"
        )

    def _of_mapping(self, batch: Mapping[str, Any], split: str) -> tuple[Any, Any]:
        names = self.targets if self.targets is not None else [name for name in TARGETS if name in batch][:1]
        names = [names] if isinstance(names, str) else list(names)
        if not names and self.forward is not None:
            return batch, batch
        if not names or any(name not in batch for name in names):
            held = ", ".join(repr(name) for name in batch) or "nothing"
            missing = "no targets" if not names else f"no {next(repr(name) for name in names if name not in batch)}"
            could = _possible_targets(batch)
            remedy = f"name the targets, such as targets={could[0]!r}, in the workload" if could else "add 'labels'"
            raise ValueError(f"split {split!r} yields mappings of {held}, with {missing} among them: {remedy}")
        rest = {name: part for name, part in batch.items() if name not in names}
        return rest, batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}


def _possible_targets(batch: Mapping[Any, Any]) -> list[str]:
    """Entries that hold tensors, but the largest, which is an input; integers first, as class numbers are, and small
    ones.
    """
    held = {name: [*tensors_in(part)] for name, part in batch.items() if isinstance(name, str)}
    sizes = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in held.items() if tensors}
    largest = max(sizes, key=lambda name: sizes[name], default=None)

    def rank(name: str) -> tuple[bool, int]:
        return any(tensor.is_floating_point() for tensor in held[name]), sizes[name]

    return sorted((name for name in reversed(sizes) if name != largest), key=rank)


def _remedy_of_lists(targets: Any) -> str:
    """What to do about targets in a list that holds no tensor of examples; empty if they are in none."""
    if not isinstance(targets, list | tuple):
        return ""
    first: Any = targets
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, Tensor):
        return ": make one tensor of these single numbers, by torch.stack"
    if isinstance(first, str):
        return ": number these words, and make a tensor of the numbers"
    return ": make a tensor of it, by torch.as_tensor"


def _remedy_of_one_each(targets: Any, examples: int) -> str:
    """Likewise, about a list that has one for each of so many examples; empty for anything else."""
    if not isinstance(targets, list | tuple) or len(targets) != examples:
        return ""
    return (
        "; of targets in a list, one for each example, make one tensor (padded where they differ in size), or leave "
        "the split to train= and evaluate= of your own"
    )


def _targets(targets: Any) -> Any:
    return targets if isinstance(targets, Tensor | Tree) else Tree(_cleaned(targets))


def _cleaned(tree: Any) -> Any:
    """The tree without entries of mappings that hold no tensor, and with plain tuples for lists."""
    if isinstance(tree, Mapping):
        cleaned = {name: _cleaned(part) for name, part in tree.items()}
        return {name: part for name, part in cleaned.items() if any(True for _ in tensors_in(part))}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return tuple(_cleaned(part) for part in tree)
    return tree


def of_kind(first: Batch, other: Batch) -> bool:
    """Whether the tensors of two batches agree in number, shape without the examples, and type."""
    return _kinds(first) == _kinds(other)


def kinds(batch: Batch) -> str:
    """Shapes without the examples, and types, of all tensors of a batch."""
    return " and ".join(f"{shape} of {dtype}" for shape, dtype in _kinds(batch))


def _kinds(batch: Batch) -> list[tuple[Sequence[int], Any]]:
    return [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors_of(batch)]


def tensors_of(batch: Iterable[Any]) -> list[Tensor]:
    """All tensors of inputs and targets, in order."""
    return [tensor for part in batch for tensor in tensors_in(contents(part))]


def equal(first: Batch, second: Batch) -> bool:
    """Whether two batches hold the same numbers."""
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return all(a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs)
