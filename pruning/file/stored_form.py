"""A network as its file stores it: rounded weights, BatchNorms of two numbers a channel, vectors of fewer bits.

In evaluation a BatchNorm multiplies by weight / sqrt(variance + eps) and adds bias - mean * that: two numbers a channel
say all that its four vectors do. What is written is the network in this form, bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.batchnorm import has_own_forward
from pruning.devices import wide
from pruning.file.precision import rounded_floats
from pruning.file.rounding import Rounded, round_weight
from pruning.modules import module_of, output_dim, prunable_weights
from spaces.bits import FLOAT_BITS
from spaces.cost.coded_size import EXACT_FORM, NORM_FORM, VECTOR_FORM
from spaces.validation import unknown


@torch.no_grad()
def to_stored_form_(model: nn.Module, bits: Mapping[str, int] | int = FLOAT_BITS) -> dict[str, Rounded]:
    """Put a network into the form its file stores, in place; recalibrate BatchNorms before.

    Without rounded weights only BatchNorms are folded, in float32. With some, gains and shifts lose all but 6 bits of
    their mantissa, and other vectors of parameters (biases, other norms) all but 8.

    Args:
        bits: of each prunable weight, by name, or one for all: 2 to 16, or 32 for floats as they are, which is what
            weights that are not named get.

    Returns:
        The rounded weights by name, for `encode`.

    Raises:
        ValueError: a name that is no prunable weight, bits that no weight can have, a weight that is not finite.
    """
    rounded = round_weights_(model, bits)
    form = NORM_FORM if rounded else EXACT_FORM
    fold_norms_(model, form.mantissa, form.distance)
    if rounded:
        _round_vectors_(model)
    return rounded


@torch.no_grad()
def round_weights_(model: nn.Module, bits: Mapping[str, int] | int) -> dict[str, Rounded]:
    """Round prunable weights in place, as `to_stored_form_` does, and leave everything else as it is.

    Args:
        bits: as of `to_stored_form_`.

    Returns:
        The rounded weights by name; none of 32 bits.

    Raises:
        ValueError: as `to_stored_form_` does; then no weight has changed.
    """
    weights = prunable_weights(model)
    wanted = dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(weights, bits)
    for name in wanted:
        if name not in weights:
            raise ValueError(unknown("layer", name, weights))
    rounded = {}
    for name, own in wanted.items():
        if own != FLOAT_BITS or isinstance(own, bool):
            rounded[name] = round_weight(weights[name], own, dim=output_dim(module_of(model, name)))
    for name, one in rounded.items():  # after all of them were found to be in order
        weights[name].copy_(one.weight(weights[name].dtype))
    return rounded


def _round_vectors_(model: nn.Module) -> None:
    inside = {f"{path}.{name}" for path in foldable(model) for name in ("weight", "bias")}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and parameter.dtype == torch.float32 and name not in inside:
            parameter.copy_(rounded_floats(parameter, VECTOR_FORM.mantissa))


def foldable(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms, by path, whose evaluation is a gain and a shift, and whose tensors say nothing else.

    They have weight, bias and statistics in float32, PyTorch's own forward method, and no tensor that is computed from
    others (as parametrized ones are) or belongs to another module as well.
    """
    found, holders = {}, Counter(t.data_ptr() for module in model.modules() for t in _own_tensors(module).values())
    for path, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm) or has_own_forward(norm):
            continue
        own = _own_tensors(norm)
        tensors = [own.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
        if all(t is not None and t.dtype == torch.float32 and holders[t.data_ptr()] == 1 for t in tensors):
            found[path] = norm
    return found


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that the module itself holds."""
    own = (module.named_parameters, module.named_buffers)
    return {name: tensor for named in own for name, tensor in named(recurse=False, remove_duplicate=False)}


@torch.no_grad()
def fold_norms_(model: nn.Module, mantissa: int = NORM_FORM.mantissa, distance: int = NORM_FORM.distance) -> int:
    """Give every foldable BatchNorm the statistics 0 and 1, and rounded weights and biases to match, in place.

    What the network computes in evaluation mode changes by the rounding alone. Recalibrate before, not after.

    Args:
        mantissa: bits behind the leading one; 23 keeps float32 as it is.
        distance: what is 2^(2^distance) or more below a norm's largest gain or shift becomes 0.

    Returns:
        The number of norms folded.
    """
    norms = foldable(model)
    for norm in norms.values():
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        gain = wide(norm.weight) / torch.sqrt(wide(variance) + norm.eps)
        shift = wide(norm.bias) - wide(mean) * gain
        norm.weight.copy_(rounded_floats((gain * (1 + norm.eps) ** 0.5).float(), mantissa, distance))
        norm.bias.copy_(rounded_floats(shift.float(), mantissa, distance))
        mean.zero_()
        variance.fill_(1)
    return len(norms)
