"""What a model costs as it stands: parameters, nonzeros, encoded bytes, MACs."""

from __future__ import annotations

import torch
from torch import nn

from pruning.devices import device_of
from pruning.modules import check_example, check_model, prunable_weights
from pruning.multiplications import Multiplications, count_multiplications
from pruning.sparse_file import encode_model
from pruning.trees import NetworkInputs
from spaces.cost.footprint import Footprint


def measure_cost(model: nn.Module, example_input: NetworkInputs) -> Footprint:
    """Count a model's costs from its own tensors and one forward pass in eval mode.

    These are the counts that `spaces.cost.footprint.footprint` computes from a policy before training, here read back
    from the real weights: zeros are elements equal to 0 in prunable weights, and `encoded_bytes` is the length of the
    file that `pruning.sparse_file` would write. MACs are those of one example as PyTorch's dispatcher sees them,
    including tied, parametrised, recurrent and functional weights, but without products of two activations such as
    attention scores, see `pruning.multiplications`. The model is not changed.

    Args:
        example_input: a batch that the model accepts; MACs are divided by its first dimension.

    Raises:
        ValueError: not a model, or an example input that is not a tensor, is empty or not finite, or on which the model
            does not run.
    """
    check_model(model)
    check_example(example_input)
    weights = prunable_weights(model)
    parameters = sum(p.numel() for p in model.parameters())
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    counted = multiplications(model, example_input)
    macs = counted.others + sum(counted.positions.get(n, 0) * p.numel() for n, p in model.named_parameters())
    macs_nonzero = macs - sum(counted.positions.get(name, 0) * count for name, count in zeros.items())
    return Footprint(parameters, parameters - sum(zeros.values()), len(encode_model(model)), macs, macs_nonzero)


def multiplications(model: nn.Module, example_input: NetworkInputs) -> Multiplications:
    """What one example multiplies; `ValueError` where the model does not run on the example input."""
    try:
        return count_multiplications(model, example_input.to(device_of(model, example_input)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the model does not run on the example input: {type(error).__name__}: {first}") from error
