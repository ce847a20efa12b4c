"""What a network is to the search: its stored tensors, prunable layers and channel groups, as plain data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from math import prod
from typing import NamedTuple, TypeVar

from spaces.validation import unknown

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element by safetensors type code."""


@dataclass(frozen=True)
class StoredTensor:
    """A parameter or buffer of the dense model, as its file holds it.

    Attributes:
        name: key in `state_dict()`.
        shape: of the dense model.
        dtype: safetensors type code, a key of `ITEM_BYTES`.
        parameter: False for buffers, which the `nonzero` measure leaves out.
        owners: one entry a dimension: pairs (number of a channel group, how many indices of this
            dimension belong to it). An empty entry is a dimension no removal changes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    parameter: bool = True
    owners: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Inputs(NamedTuple):
    """Where the inputs of a weight lie: along dimension `dim`, those of each of `groups` convolution groups together.

    Only transposed convolutions hold the inputs of several groups; all other weights have one group's in dimension 1.
    """

    dim: int = 1
    groups: int = 1


SECOND = Inputs()
"""Of linear layers and convolutions that are not transposed."""


@dataclass(frozen=True)
class Layer:
    """One weight, named as in `model.named_parameters()`: a prunable one, or one that stays unpruned for a reason.

    Attributes:
        kind: `conv1d`, `conv2d`, `conv3d`, `conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d` or
            `linear`; of weights that are not prunable also `recurrent`, `attention`, `embedding`, `parametrized` or
            `parameter`.
        positions: how often one example multiplies each element (height x width of a convolution's output, of a
            transposed one's input, 1 for a linear layer on vectors), so that dense MACs are `positions * numel`.
        convolution_groups: `groups` of the convolution.
        channel_group: number of the group its output channels belong to; None if they are in none.
        obstacle: why none of its output channels can be removed; None if they can.
        prunable: False where policies cannot name it: it stays unpruned in every granularity, as `obstacle` says.
        whole: why masks of every granularity leave a prunable weight unpruned; None if they do not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    positions: int
    convolution_groups: int = 1
    channel_group: int | None = None
    obstacle: str | None = None
    prunable: bool = True
    whole: str | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def output_dim(self) -> int:
        """The dimension its output channels index: 1 for transposed convolutions but depthwise ones, else 0."""
        depthwise = self.convolution_groups > 1 and self.shape[:2] == (self.convolution_groups, 1)
        return int(self.kind.startswith("conv_transpose") and not depthwise)

    @property
    def output_channels(self) -> int:
        """All of them; the second dimension of a transposed convolution counts those of one group."""
        return self.shape[self.output_dim] * (self.convolution_groups if self.output_dim else 1)

    @property
    def input_dim(self) -> int:
        """The dimension its input channels index: the other one."""
        return 1 - self.output_dim

    @property
    def inputs(self) -> Inputs:
        """Where its inputs lie, along which patterns `N:M` run."""
        return SECOND if self.output_dim == 0 else Inputs(0, self.convolution_groups)


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels can only be removed together.

    A unit is the smallest set of channels that leaves as one: one channel, or for grouped
    convolutions one local index in every group.

    Attributes:
        multiple: where units go, what is kept is rounded up to a multiple of so many, at most to all.
    """

    layers: tuple[str, ...]
    units: int
    obstacle: str | None = None
    multiple: int = 1


@dataclass(frozen=True)
class Network:
    """Everything sizes and MACs are computed from before any training.

    Attributes:
        tensors: in `state_dict()` order, shared storage once.
        layers: the prunable weights in the order of `named_parameters()`, then those that are not, likewise.
        groups: the channel groups; a group's number is its index here.
        aliases: further `state_dict()` names of shared tensors, name -> the name in `tensors`.
        other_macs: of one example, in products with anything but a complete weight: no removal lowers them.
        uncounted: multiplications that no MACs count, each in a few words.
        folded_norms: paths of the BatchNorms whose evaluation is a gain and a shift, which files of rounded weights
            store instead of their four vectors.
    """

    tensors: tuple[StoredTensor, ...]
    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    other_macs: int = 0
    uncounted: tuple[str, ...] = ()
    folded_norms: tuple[str, ...] = ()

    @cached_property
    def prunable(self) -> tuple[Layer, ...]:
        """The layers a policy can name."""
        return tuple(layer for layer in self.layers if layer.prunable)

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """The prunable ones."""
        return {layer.name: layer for layer in self.prunable}

    @cached_property
    def multiplied(self) -> dict[str, int]:
        """Positions of every weight that has some, prunable or not."""
        return {layer.name: layer.positions for layer in self.layers if layer.positions}

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of the prunable ones."""
        return tuple(self.by_name)

    def output_dim(self, tensor: str) -> int:
        """The dimension of this tensor that channels of its module's output index.

        Of what is no layer's weight, that is the first dimension that some group owns.
        """
        if tensor in self.by_name:
            return self.by_name[tensor].output_dim
        owners = self._owners.get(tensor, ())
        return next((dim for dim, groups in enumerate(owners) if groups), 0)

    @cached_property
    def _owners(self) -> dict[str, tuple[tuple[tuple[int, int], ...], ...]]:
        return {tensor.name: tensor.owners for tensor in self.tensors}

    @property
    def removable(self) -> tuple[str, ...]:
        """Names of the layers whose output channels can be removed."""
        able = (layer for layer in self.prunable if layer.obstacle is None and layer.channel_group is not None)
        return tuple(layer.name for layer in able)

    def require(self, names: Iterable[str]) -> None:
        """Raise `ValueError` with the nearest match for the first name that is no prunable layer."""
        for name in names:
            if name not in self.by_name:
                raise ValueError(unknown("layer", name, self.by_name))


Built = TypeVar("Built")


def once_per_network(build: Callable[[Network], Built]) -> Callable[[Network], Built]:
    """What `build` makes of a network, made once for each network object and kept as long as that lives.

    What is made must not hold on to the network.
    """
    known: dict[int, Built] = {}

    @wraps(build)
    def built(network: Network) -> Built:
        key = id(network)
        if key not in known:
            known[key] = build(network)
            weakref.finalize(network, known.pop, key, None)
        return known[key]

    return built
