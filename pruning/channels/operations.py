"""What each operation does to the labels of its tensors: which channels it passes on, joins, or needs whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.channels.call import Call
from pruning.channels.labels import Axes, compacted, narrowed, varies
from pruning.channels.narrow_norms import can_narrow
from pruning.channels.products import (
    attention,
    batched_product,
    batched_product_and_sum,
    convolution,
    embedding,
    linear,
    power_iteration,
    product_and_sum,
    product_of_two,
    weight_norm,
)
from pruning.channels.rearrangements import (
    as_strided,
    beside_channels,
    channel_shuffle,
    divided,
    from_patches,
    gated,
    index_select,
    indexed,
    joined_end_to_end,
    moved,
    packed,
    patches,
    picked,
    pixel_shuffle,
    pixel_unshuffle,
    repeated,
    reshaped,
    sliced,
    spatial,
    unfolded,
)

FACTORIES = frozenset((
    "empty", "zeros", "ones", "full", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full",
    "new_empty_strided", "rand", "randn",
))  # fmt: skip
LIKE = frozenset((
    "clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "to", "copy", "positive", "empty_like",
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "dropout", "feature_dropout",
    "alpha_dropout", "native_dropout", "bernoulli", "cumsum", "rrelu_with_noise",
))  # fmt: skip
"""Operations whose first result has the labels of their first argument."""
_MOVES = frozenset((
    "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "movedim", "swapaxes", "diagonal", "tril",
    "triu", "flip",
))  # fmt: skip
_RESHAPES = frozenset((
    "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "flatten", "unflatten", "view_copy",
))  # fmt: skip
_MIXING = {
    "std": "takes the deviation", "var": "takes the variance", "std_mean": "takes the deviation",
    "var_mean": "takes the variance", "prod": "multiplies", "logsumexp": "normalises", "mean": "averages",
    "argmax": "compares", "argmin": "compares", "median": "compares", "mode": "compares",
}  # fmt: skip
"""Reductions that a removed channel changes although it is zero."""
_REDUCTIONS = frozenset((
    *_MIXING, "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm", "any", "all", "nansum",
    "count_nonzero",
))  # fmt: skip


def rule_of(name: str, pointwise: bool) -> Callable[[Call], Any]:
    """The rule of an operation; an unknown operation is taken to leave its channels where they are."""
    if name in RULES:
        return RULES[name]
    if name in LIKE:
        return _like
    if name in _MOVES:
        return moved
    if name in _RESHAPES:
        return reshaped
    if name in _REDUCTIONS:
        return _reduced
    if re.search(r"(pool|upsample_\w+|grid_sampler_|pad|grid_sampler)[123]d", name) or name == "constant_pad_nd":
        return spatial
    return _pointwise if pointwise else beside_channels


def _like(call: Call) -> Axes | Tensor | None:
    if call.name == "copy":
        labels = call.of(call.args[1])
        return None if labels is None else labels.expand(call.args[0].shape)
    known = call.raw(call.args[0])
    if isinstance(known, Axes) or known is None or known.shape == call.args[0].shape:
        return known
    return None


def _pointwise(call: Call) -> Axes | Tensor | None:
    tensors = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    weights = [known for known in map(call.raw, tensors) if isinstance(known, Axes)]
    others = [t for t in tensors if not isinstance(call.raw(t), Axes)]
    if len(weights) == 1 and all(tensor.numel() == 1 for tensor in others):
        return weights[0]
    known = [(tensor, call.of(tensor)) for tensor in tensors]
    labelled = [labels.expand(shape) for _, labels in known if labels is not None]
    if not labelled:
        return None
    if call.name in ("rsqrt", "sqrt", "reciprocal", "log", "pow"):
        call.notes.divisors.append(labelled[0])
    if call.name == "div" and len(known) > 1 and known[1][1] is not None:
        call.notes.divisors.append(known[1][1])
    result = _met(call, labelled)
    for tensor, labels in known:
        if labels is None and tensor.numel() > 1:
            wide = tensor.expand(shape)
            if any(wide.stride(dim) and wide.shape[dim] > 1 and varies(result, dim) for dim in range(len(shape))):
                call.hint(result, f"a tensor of fixed shape {tuple(tensor.shape)} acts on its channels")
    return result


def _met(call: Call, arrays: Sequence[Tensor]) -> Tensor:
    """The labels of elements computed from others one by one; what varies along the same dimension leaves together."""
    tensors = call.notes.tensors
    ranked = [(labels, _varied(call.labels.roots(labels))) for labels in arrays]
    ranked.sort(key=lambda one: (not one[1], tensors.own(one[0])))
    result, varied = ranked[0]
    for labels, others in ranked[1:]:
        if varied & others:
            call.labels.join(result, labels)
        elif others and not tensors.own(labels):
            for one in (result, labels):
                call.block(one, "it meets channels along another dimension")
        if not narrowed(result).all():
            result = compacted(torch.where(result > 0, result, labels))
    return result


def _varied(labels: Tensor) -> set[int]:
    return {dim for dim in range(labels.dim()) if varies(labels, dim)}


def _reduced(call: Call) -> Any:
    source, out = call.args[0], call.out if isinstance(call.out, Tensor) else call.out[0]
    labels = call.of(source)
    if labels is None:
        return None
    place = {"norm": 2, "linalg_vector_norm": 2}.get(call.name, 1)
    dims = call.argument(place, "dim")
    if isinstance(dims, (bool, torch.dtype)):
        dims = None
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    dims = [dim % source.dim() for dim in dims] or list(range(source.dim()))
    varied = [dim for dim in dims if varies(labels, dim)]
    if varied and not any(varies(labels, dim) for dim in range(labels.dim()) if dim not in dims):
        what = _MIXING.get(call.name)
        if what and not _narrows(call, nn.RMSNorm):
            call.block(labels, f"'{call.name}' {what} over its channels")
        else:
            call.hint(labels, f"{call.name!r} is taken over its channels")
        return torch.zeros(out.shape, dtype=torch.int32).expand(out.shape)
    labels = call.labels.join_along(labels, *dims)
    if out.dim() == source.dim():
        result = labels
    else:
        result = labels[tuple(0 if dim in dims else slice(None) for dim in range(labels.dim()))]
    found = result.expand(out.shape)
    return found if isinstance(call.out, Tensor) else [found, *(found for _ in call.out[1:])]


def _softmax(call: Call) -> Tensor | None:
    labels, dim = call.of(call.args[0]), call.args[1]
    if labels is not None and varies(labels, dim % labels.dim()):
        call.block(labels, "a softmax normalises over its channels")
    return labels


def _batch_norm(call: Call) -> list[Tensor | None] | None:
    labels = call.of(call.args[0])
    line = None if labels is None else labels.movedim(1, -1)
    for tensor in call.args[1:5]:
        known = call.of(tensor)
        if known is not None and line is not None:
            call.labels.join(line, known)
        if known is not None and line is None:
            return None
    if labels is not None and call.args[1] is None and not call.args[5]:
        call.block(labels, "batch normalisation without scale and shift cannot make a removed channel zero")
    if labels is not None and call.args[5] and not call.name.endswith("no_training"):
        labels = call.labels.join_along(labels, 0, *range(2, labels.dim())).expand(labels.shape)
    return [labels]


def _layer_norm(call: Call) -> list[Tensor] | None:
    labels, shape = call.of(call.args[0]), call.args[1]
    if labels is None:
        return None
    kept = labels.dim() - len(shape)
    if any(varies(labels, dim) for dim in range(kept, labels.dim())):
        parts = narrowed(compacted(call.labels.roots(labels)))
        if parts.unique().numel() < parts.numel() or not any(varies(labels, dim) for dim in range(kept)):
            return [_normalised(call, labels)]
        call.labels.hint(labels, _normalises(call))  # divided: channels into heads, elements of a weight into rows
    return [call.labels.join_along(labels, *range(kept, labels.dim())).expand(labels.shape)]


def _normalised(call: Call, labels: Tensor) -> Tensor:
    """Channels along the last dimension, which go on counting in a norm that can do without them."""
    if not _narrows(call, nn.LayerNorm, nn.RMSNorm):
        call.labels.block(labels, _normalises(call))
        return labels
    line = call.labels.join_along(labels, *range(labels.dim() - 1))
    for tensor in call.args[2:4]:
        if (known := call.of(tensor)) is not None:
            call.labels.join(line.reshape(-1), known)
    return line.expand(labels.shape)


def _narrows(call: Call, *kinds: type[nn.Module]) -> bool:
    running = call.notes.running
    return running is not None and isinstance(running.module, kinds) and can_narrow(running.module)


def _group_norm(call: Call) -> list[Tensor] | None:
    labels, scale, shift, channels, groups = (call.of(call.args[0]), *call.args[1:3], call.args[4], call.args[6])
    if labels is None:
        return None
    if channels != groups and varies(labels, 1):
        if _narrows(call, nn.GroupNorm):
            labels = call.labels.join_along(labels, 0, *range(2, labels.dim())).expand(labels.shape)
            call.labels.join_along(labels.movedim(1, -1).unflatten(-1, (groups, -1)), -2)
        else:
            call.labels.block(labels, _normalises(call))
    for tensor in (scale, shift):
        if (known := call.of(tensor)) is not None:
            call.labels.join(labels.movedim(1, -1), known)
    return [labels]


def _normalises(call: Call) -> str:
    call_place = call.notes.path[-1].label if call.notes.path else call.name
    return f"{call_place} normalises over the channels"


def _prelu(call: Call) -> Axes | Tensor | None:
    return _pointwise(call)


RULES = {
    "as_strided": as_strided, "slice": sliced, "split": divided, "split_with_sizes": divided, "unsafe_split": divided,
    "unsafe_split_with_sizes": divided, "unsafe_chunk": divided, "select": picked, "unbind": picked,
    "index": indexed, "index_select": index_select, "cat": joined_end_to_end, "stack": joined_end_to_end,
    "concat": joined_end_to_end, "repeat": repeated, "unfold": unfolded, "glu": gated, "_softmax": _softmax,
    "_log_softmax": _softmax, "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle, "native_channel_shuffle": channel_shuffle, "im2col": patches,
    "col2im": from_patches, "_pack_padded_sequence": packed, "convolution": convolution,
    "mm": product_of_two, "addmm": product_and_sum, "linear": linear, "bmm": batched_product,
    "baddbmm": batched_product_and_sum, "mv": power_iteration,
    "_scaled_dot_product_flash_attention_for_cpu": attention, "_scaled_dot_product_flash_attention": attention,
    "_scaled_dot_product_efficient_attention": attention, "_scaled_dot_product_cudnn_attention": attention,
    "embedding": embedding, "native_batch_norm": _batch_norm, "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm, "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm, "_fused_rms_norm": _layer_norm, "native_group_norm": _group_norm,
    "_prelu_kernel": _prelu, "_weight_norm_interface": weight_norm, "hardswish": _pointwise, "mish": _pointwise,
    "log_sigmoid_forward": _pointwise, "threshold": _pointwise, "softshrink": _pointwise, "hardshrink": _pointwise,
    "hardsigmoid": _pointwise, "celu": _pointwise, "lerp": _pointwise, "fill": _like, "zero": _like,
}  # fmt: skip
WRITERS = (_pointwise, _like, as_strided)
"""Rules that also hold for the in-place form of an operation."""
