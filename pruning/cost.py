"""What a model costs as it stands: parameters, nonzeros, encoded bytes, MACs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.modules import check_example, check_model, prunable_weights
from pruning.multiplications import Multiplications, count_multiplications
from pruning.sparse_file import encode_model
from spaces.cost.footprint import Footprint


def measure_cost(model: nn.Module, example_input: Tensor) -> Footprint:
    """Count a model's costs from its own tensors and one forward pass in eval mode.

    The same counts `spaces.cost.footprint.footprint` computes from a policy before training, here read back from
    the real weights: zeros are elements equal to 0 in prunable weights, `encoded_bytes` is the length of
    the file `pruning.sparse_file` would write, MACs are those of one example as PyTorch's dispatcher sees them (of
    tied, parametrised, recurrent and functional weights too), but for products of two activations such as attention's
    scores: see `pruning.multiplications`. The model is not changed.

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
    counted = multiplications(model, example_input)
    macs = counted.others + sum(counted.positions.get(n, 0) * p.numel() for n, p in model.named_parameters())
    macs_nonzero = macs - sum(counted.positions.get(name, 0) * count for name, count in zeros.items())
    return Footprint(parameters, parameters - sum(zeros.values()), len(encode_model(model)), macs, macs_nonzero)


def multiplications(model: nn.Module, example_input: Tensor) -> Multiplications:
    """What one example multiplies; `ValueError` where the model does not run on the example input."""
    try:
        return count_multiplications(model, example_input)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the model does not run on the example input: {type(error).__name__}: {first}") from error
