"""Examples that are more than one tensor: several inputs, mappings, targets of several parts; and networks called on
them.

A `Tree` can be measured, indexed and cut like a tensor whose first dimension is that of the examples, so that code that
does no more than that takes both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import register_pytree_node

from pruning.outputs import map_tensors, tensors_in


@dataclass(frozen=True, eq=False)
class Tree:
    """Tensors in mappings, tuples, lists and dataclasses, however nested, with an entry for each example in the first
    dimension of each. Single numbers and parts that are no tensors belong to all examples.
    """

    tree: Any

    def __len__(self) -> int:
        return next((len(tensor) for tensor in tensors_in(self.tree) if tensor.ndim), 0)

    def __getitem__(self, rows: Any) -> Self:
        """The examples that a slice, or a tensor or list of places, names; `None` makes one example a batch of one."""
        return self.map(lambda tensor: tensor[rows] if tensor.ndim or rows is None else tensor)

    def split(self, size: int) -> tuple[Self, ...]:
        """Batches of that many examples; the last may have fewer."""
        return tuple(self[place : place + size] for place in range(0, len(self), size))

    def tensor_split(self, parts: int) -> tuple[Self, ...]:
        """So many parts, the first ones an example longer if they cannot all be equal."""
        least, more = divmod(len(self), parts)
        ends = [(number + 1) * least + min(number + 1, more) for number in range(parts)]
        return tuple(self[begin:end] for begin, end in zip([0, *ends], ends, strict=False))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, tree=map_tensors(self.tree, change))

    def detach(self) -> Self:
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        return self.map(torch.clone)

    def to(self, *where: Any, **options: Any) -> Self:
        return self.map(lambda tensor: tensor.to(*where, **options))

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in tensors_in(self.tree)), torch.device("cpu"))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in tensors_in(self.tree))


@dataclass(frozen=True, eq=False)
class ModelInputs(Tree):
    """What a network is called on.

    Attributes:
        forward: (model, tree) -> outputs; None calls the network with a mapping's entries as named arguments (with the
            only one as it is, if the network has no such argument), and with those of a tuple or list in their order.
    """

    forward: Callable[[nn.Module, Any], Any] | None = None


NetworkInputs = Tensor | ModelInputs
"""Inputs of a network for some examples."""
# so that vmap reaches the tensors inside
register_pytree_node(Tree, lambda part: ([part.tree], None), lambda held, _: Tree(next(iter(held))))
register_pytree_node(
    ModelInputs, lambda part: ([part.tree], part.forward), lambda held, forward: ModelInputs(next(iter(held)), forward)
)


def run(model: nn.Module, inputs: NetworkInputs) -> Any:
    """What the network returns for these inputs."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if inputs.forward is not None:
        return inputs.forward(model, inputs.tree)
    tree = inputs.tree
    if isinstance(tree, Mapping):
        only = next(iter(tree)) if len(tree) == 1 else None
        return model(*tree.values()) if only is not None and not _takes(model, only) else model(**tree)
    return model(*tree) if isinstance(tree, (tuple, list)) else model(tree)


def _takes(model: nn.Module, name: str) -> bool:
    """Whether its forward function has an argument of this name, or takes any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


class CalledWith(nn.Module):
    """A network with what calls it, as one module: `forward(tree)`.

    Args:
        like: inputs of the kind that it is to be called on.
    """

    def __init__(self, network: nn.Module, like: ModelInputs) -> None:
        super().__init__()
        self.network, self._like = network, like

    def forward(self, tree: Any) -> Any:
        return run(self.network, replace(self._like, tree=tree))


def run_with(model: nn.Module, parameters: Mapping[str, Tensor], inputs: NetworkInputs) -> Any:
    """What the network returns if its parameters have these values, as `torch.func.functional_call`."""
    if isinstance(inputs, Tensor):
        return functional_call(model, dict(parameters), (inputs,))
    inside = {f"network.{name}": value for name, value in parameters.items()}
    return functional_call(CalledWith(model, inputs), inside, (inputs.tree,))


def contents(part: Any) -> Any:
    """What a `Tree` holds; anything else as it is. A user's loss and metric are given this."""
    return part.tree if isinstance(part, Tree) else part


def joined(parts: list[Any]) -> Any:
    """Tensors, or trees of one form, one after the other along the examples."""
    if isinstance(parts[0], Tree):
        streams = [iter([*tensors_in(part.tree)]) for part in parts]

        def join(first: Tensor) -> Tensor:
            tensors = [next(stream) for stream in streams]
            return torch.cat(tensors) if first.ndim else first

        return parts[0].map(join)
    return torch.cat(parts)
