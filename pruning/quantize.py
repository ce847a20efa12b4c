"""Dense int8 in a file of version 1, which benchmarks compare with: weights only, one scale an output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.modules import prunable_weights
from pruning.sparse_file import encode_state

INT8_LARGEST = 127


@torch.no_grad()
def quantize_int8(model: nn.Module) -> tuple[nn.Module, int]:
    """Round every convolution and linear weight to 8 bits, symmetrically, by output channel.

    Returns:
        A new model that computes with the rounded weights (in the original dtype), and the bytes of the file that holds
            them as int8 with one float scale for each channel; everything else stays dense.
    """
    rounded = copy_model(model)
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, weight in prunable_weights(rounded).items():
        scale = weight.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny) / INT8_LARGEST
        by_row = scale.view(-1, *[1] * (weight.dim() - 1))
        levels = (weight / by_row).round_().clamp_(-INT8_LARGEST, INT8_LARGEST)  # bfloat16 scales round
        state[name] = levels.to(torch.int8)
        state[f"{name}.scale"] = scale
        weight.copy_(levels * by_row)
    return rounded, len(encode_state(state))


def nonzero_share_int8(model: nn.Module) -> float:
    """Bits of the quantised parameters over 32 bits each: 8 for a weight, 32 for a scale, bias or norm parameter."""
    weights = prunable_weights(model).values()
    quantized, scales = sum(w.numel() for w in weights), sum(w.shape[0] for w in weights)
    parameters = sum(p.numel() for p in model.parameters())
    return (8 * quantized + 32 * (parameters - quantized + scales)) / (32 * parameters)
