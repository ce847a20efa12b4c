"""What a model costs as it stands: parameters, nonzeros, encoded bytes, MACs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.codec import encode_model, prunable_weights
from spaces.size import Footprint


def measure_cost(model: nn.Module, example_input: Tensor) -> Footprint:
    """Count a model's costs from its own tensors and one forward pass in eval mode.

    The same counts `spaces.size.footprint` computes from a policy before training, here read back from
    the real weights: zeros are elements equal to 0 in prunable weights, `encoded_bytes` is the length of
    the file `pruning.codec` would write, MACs are those of convolutions and linear layers for one
    example. The model is not changed.

    Args:
        example_input: a batch the model accepts; MACs are divided by its first dimension.

    Raises:
        ValueError: no model, an example input that is none, empty or not finite, or that the model does not run on.
    """
    check_model(model)
    check_example(example_input)
    weights = prunable_weights(model)
    parameters = sum(p.numel() for p in model.parameters())
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    macs = macs_nonzero = 0
    for name, positions in _positions(model, example_input).items():
        macs += positions * weights[name].numel()
        macs_nonzero += positions * (weights[name].numel() - zeros[name])
    return Footprint(parameters, parameters - sum(zeros.values()), len(encode_model(model)), macs, macs_nonzero)


def check_model(model: object) -> None:
    """Raise `ValueError` unless it is a `torch.nn.Module`."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_example(example_input: object) -> None:
    """Raise `ValueError` unless it is a batch of at least one example, all of it finite."""
    if not isinstance(example_input, Tensor):
        raise ValueError(f"the example input must be a tensor (N, ...), got {type(example_input).__name__}")
    if example_input.dim() == 0 or example_input.numel() == 0:
        raise ValueError(f"the example input has shape {tuple(example_input.shape)}: it needs at least one example")
    if not torch.isfinite(example_input).all():
        raise ValueError("the example input holds NaN or infinite values: give a finite one")


def _positions(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    try:
        return output_positions(model, example_input)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the model does not run on the example input: {type(error).__name__}: {first}") from error


@torch.no_grad()
def output_positions(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Prunable weight -> output positions of one example, summed over calls; 0 if never called.

    A transposed convolution multiplies its weights at every position of its input, so those are its
    positions. Positions times the weight's elements are the layer's dense MACs.
    """
    names = {id(weight): name for name, weight in prunable_weights(model).items()}
    positions = dict.fromkeys(names.values(), 0)

    def count(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> None:
        multiplied = (*args, *kwargs.values())[0] if getattr(module, "transposed", False) else output
        per_channel = multiplied.numel() // module.weight.shape[0]
        positions[names[id(module.weight)]] += per_channel // example_input.shape[0]

    layers = [module for module in model.modules() if id(getattr(module, "weight", None)) in names]
    hooks = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in training.items():
            module.training = flag
    return positions
