"""How operations that rearrange a tensor change its labels: reshapes, slices, joins, shuffles, pooling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pruning.channels.call import HEADS_OF_INPUTS, LAST, Call, Running, Split
from pruning.channels.labels import Axes, compacted, narrowed, varies


def moved(call: Call) -> Axes | Tensor | None:
    known = call.raw(call.args[0])
    if isinstance(known, Axes):
        count = len(known.dims)
        if call.name == "t":
            return known.permuted((1, 0))
        if call.name == "transpose":
            order = list(range(count))
            one, other = (dim % count for dim in call.args[1:3])
            order[one], order[other] = order[other], order[one]
            return known.permuted(tuple(order))
        if call.name == "permute":
            return known.permuted(tuple(dim % count for dim in call.args[1]))
        known = call.of(call.args[0])
    return None if known is None else call.on_labels(known)


def reshaped(call: Call) -> Axes | Tensor | None:
    known, before, after = call.raw(call.args[0]), tuple(call.args[0].shape), tuple(call.out.shape)
    if isinstance(known, Axes):
        if before == after:
            return known
        known = call.of(call.args[0])
    if known is None:
        return None
    labels = known.reshape(after)
    if labels.untyped_storage().data_ptr() != known.untyped_storage().data_ptr():
        labels = compacted(labels)
    for _, divided_into in _parts(before, after):
        dims = tuple(dim for dim in divided_into if after[dim] > 1)
        if len(dims) > 1 and any(varies(labels, dim) for dim in dims):
            labels = note_split(call, labels, dims, before, after)
    for dim in range(labels.dim()):
        call.notes.note_size(labels, dim)
    return labels


def note_split(call: Call, labels: Tensor, dims: Sequence[int], before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Channels that a reshape divided along `dims`; returns their labels, joined where it is known what shrinks."""
    running = call.notes.running
    name = "" if running is None else running.name
    scheme, varied = call.notes.schemes.get(name, LAST), [dim for dim in dims if varies(labels, dim)]
    if len(varied) > 1:
        call.hint(labels, f"a reshape from {tuple(before)} to {tuple(after)} mixes its channels with others")
    if running is None or scheme <= LAST or len(varied) < 2:
        call.notes.splits.append(Split(labels, tuple(dims), name))
        return labels
    heads = _heads(running, labels, varied)
    joined = call.labels.join_along(labels, *(dim for dim in varied if dim != heads))
    call.notes.splits.append(Split(joined, tuple(dims), name))
    each = narrowed(joined).flatten()
    if scheme == HEADS_OF_INPUTS and len(each) == labels.shape[heads]:  # else more than heads were divided
        _share_inputs(call, running, each, prod(labels.shape[dim] for dim in varied))
    return joined.expand(labels.shape)


def _heads(running: Running, labels: Tensor, varied: Sequence[int]) -> int:
    """The dimension of heads: the last but the very last one, if possible one whose length the module holds."""
    held = [dim for dim in varied[:-1] if any(running.sizes(labels.shape[dim]))]
    return (held or varied[:-1])[-1]


def _share_inputs(call: Call, running: Running, heads: Tensor, channels: int) -> None:
    """Let each head leave with its share of the channels that the module takes, which its code takes for the heads'."""
    for tensor in running.inputs:
        if (labels := call.of(tensor)) is None:
            continue
        for dim in range(labels.dim()):
            length = labels.shape[dim]
            if varies(labels, dim) and length % len(heads) == 0 and channels % length == 0:
                shares = labels.movedim(dim, -1).unflatten(-1, (len(heads), -1))
                call.labels.join(shares, heads.unsqueeze(-1))


def as_strided(call: Call) -> Tensor | None:
    """As pooling to one position ends, for the sake of the memory format."""
    labels = call.of(call.args[0])
    if labels is not None and tuple(labels.shape) != tuple(call.args[1]):
        raise ValueError("another shape")
    call.hint(labels, "'as_strided' may move its channels")
    return labels


def _parts(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of the two shapes that hold the same elements."""
    ends = {product: end for end, product in enumerate(accumulate(before, lambda a, b: a * b), 1)}
    first = start = 0
    for end, product in enumerate(accumulate(after, lambda a, b: a * b), 1):
        if product in ends and (end == len(after) or after[end] != 1):
            yield list(range(start, ends[product])), list(range(first, end))
            first, start = end, ends[product]


def spatial(call: Call) -> Any:
    """Each channel by itself: pooling, padding and resampling of the last dimensions."""
    labels, out = call.of(call.args[0]), call.out if isinstance(call.out, Tensor) else call.out[0]
    if labels is None:
        return None
    if call.name == "constant_pad_nd":
        places, dims = call.args[1], out.dim()
        changed = [dims - 1 - place for place in range(len(places) // 2) if places[2 * place : 2 * place + 2] != [0, 0]]
        if any(varies(labels, dim) for dim in changed):
            return call.operator(labels, call.args[1], 0)
    elif (count := re.search(r"([123])d", call.name)) is not None:
        changed = list(range(out.dim() - int(count[1]), out.dim()))
    else:
        raise ValueError("no number of dimensions in its name")
    result = call.labels.join_along(labels, *changed)
    return result.expand(out.shape)


def sliced(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    dim = call.argument(1, "dim", 0) % labels.dim()
    length = labels.shape[dim]
    start, end, step = call.argument(2, "start"), call.argument(3, "end"), call.argument(4, "step", 1)
    start, end, step = slice(start, end, step).indices(length)
    part = call.on_labels(labels)
    if varies(labels, dim) and (start, end, step) != (0, length, 1) and narrowed(part).any():
        _cut(call, labels, dim, (start, min(end, length)), step)
    return part


def _cut(call: Call, labels: Tensor, dim: int, places: Sequence[int], step: int = 1) -> None:
    """Join channels such that every removal keeps the proportions of the parts."""
    length = labels.shape[dim]
    size = gcd(length, *places)
    moved = labels.movedim(dim, -1)
    if step > 1:
        if size % step == 0:
            call.labels.join_along(moved.unflatten(-1, (-1, step)), -1)
        else:
            size = 1
    call.labels.join_along(moved.unflatten(-1, (length // size, size)), -2)
    call.hint(labels, f"its {length} channels are cut at fixed places")


def divided(call: Call) -> list[Tensor] | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    dim = call.argument(2, "dim", 0) % labels.dim()
    lengths = [part.shape[call.argument(2, "dim", 0)] for part in call.out]
    parts = list(labels.split(lengths, dim))
    if len(lengths) > 1 and varies(labels, dim):
        _cut(call, labels, dim, list(accumulate(lengths)))
        for part in parts:
            call.notes.note_size(part, dim)
    return parts


def picked(call: Call) -> Any:
    """One index of a dimension, or each of its indices."""
    labels = call.of(call.args[0])
    if labels is None:
        return None
    dim = call.argument(1, "dim", 0) % labels.dim()
    if varies(labels, dim):
        call.labels.join_along(labels, dim)
        call.hint(labels, "an index picks among its channels")
    return call.on_labels(labels)


def indexed(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    for dim, index in enumerate(call.args[1]):
        if index is not None and varies(labels, dim):
            if index.dtype == torch.bool and index.dim() > 1:
                raise ValueError("a mask over several dimensions")
            call.labels.join_along(labels, dim)
            call.hint(labels, "an index picks among its channels")
    return compacted(call.operator(labels, [None if index is None else index.cpu() for index in call.args[1]]))


def index_select(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    if varies(labels, call.args[1]):
        call.labels.join_along(labels, call.args[1])
        call.hint(labels, "an index picks among its channels")
    return compacted(call.on_labels(labels))


def joined_end_to_end(call: Call) -> Tensor | None:
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    parts = []
    for tensor in tensors:
        labels = call.of(tensor)
        parts.append(torch.zeros(1, dtype=torch.int32).expand(tensor.shape) if labels is None else labels)
    if call.name == "cat":
        parts = [part for part in parts if part.dim() == call.out.dim()]
    else:
        parts = [part.unsqueeze(dim) for part in parts]
    dim %= call.out.dim()
    for other in range(call.out.dim()):
        if other != dim and all(part.stride(other) == 0 or part.shape[other] == 1 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts if part.numel()]
    return compacted(torch.cat(parts, dim)).expand(call.out.shape)


def repeated(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    return None if labels is None else compacted(call.on_labels(labels))


def unfolded(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is not None and varies(labels, call.args[1] % labels.dim()):
        raise ValueError("windows of channels")
    return None if labels is None else call.on_labels(labels)


def gated(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    dim = call.argument(1, "dim", -1) % labels.dim()
    half = labels.shape[dim] // 2
    if varies(labels, dim):
        _cut(call, labels, dim, [half])
    call.labels.join(labels.narrow(dim, 0, half), labels.narrow(dim, half, half))
    return labels.narrow(dim, 0, half)


def pixel_shuffle(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    area = call.args[1] ** 2
    labels = call.labels.join_along(labels, -1, -2)
    blocks = labels.unflatten(-3, (-1, area))
    return call.labels.join_along(blocks, -3).squeeze(-3).expand(call.out.shape)


def pixel_unshuffle(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    labels = call.labels.join_along(labels, -1, -2)
    return labels.repeat_interleave(call.args[1] ** 2, -3).expand(call.out.shape)


def channel_shuffle(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    groups = call.args[1]
    split = labels.unflatten(1, (groups, -1))
    split = note_split(call, split, (1, 2), labels.shape, split.shape)
    return compacted(split.transpose(1, 2).flatten(1, 2))


def patches(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    first = call.labels.join_along(labels, -1, -2).flatten(-2)
    return first.repeat_interleave(prod(call.args[1]), -2).expand(call.out.shape)


def from_patches(call: Call) -> Tensor | None:
    labels = call.of(call.args[0])
    if labels is None:
        return None
    blocks = call.labels.join_along(labels, -1).unflatten(-2, (-1, prod(call.args[2])))
    return call.labels.join_along(blocks, -2).expand(call.out.shape)


def packed(call: Call) -> list[Tensor | None]:
    """Sequences of several lengths end to end; each step keeps its channels."""
    labels = call.of(call.args[0])
    if labels is None:
        return [None]
    return [call.labels.join_along(labels, 0, 1).reshape(-1).expand(call.out[0].shape)]


def beside_channels(call: Call) -> list[Tensor | None]:
    """An unknown operation that seems to act along dimensions other than one tensor's channels, such as examples or
    positions. Trying the removal shows whether it does.
    """
    tensors = [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, Tensor)]
    if any(isinstance(call.raw(tensor), Axes) for tensor in tensors):
        raise ValueError("a weight, whose channels are others")
    known = [labels for labels in map(call.of, tensors) if labels is not None]
    moving = [labels for labels in known if any(varies(labels, dim) for dim in range(labels.dim()))]
    if not moving:
        return [None]
    (labels,) = moving
    (dim,) = (dim for dim in range(labels.dim()) if varies(labels, dim))
    call.hint(labels, f"operation {call.name!r} is not followed")
    found: list[Tensor | None] = []
    for out in tree_leaves(call.out):
        if out.dim() != labels.dim() or out.shape[dim] != labels.shape[dim]:
            raise ValueError("its channels do not stay where they are")
        line = call.labels.join_along(labels, *(other for other in range(labels.dim()) if other != dim))
        found.append(line.expand(out.shape))
    return found
