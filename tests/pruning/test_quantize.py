"""The int8 baseline."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

from pruning.quantize import nonzero_share_int8, quantize_int8


def test_rounding_by_hand():
    model = nn.Linear(3, 2, bias=False)
    model.weight.data = torch.tensor([[127.0, -63.6, 0.4], [0.0, 2.54, -1.0]])
    rounded, _ = quantize_int8(model)
    assert rounded.weight.tolist()[0] == [127.0, -64.0, 0.0]
    assert rounded.weight.tolist()[1] == pytest.approx([0.0, 2.54, -1.0], abs=1e-6)
    assert model.weight.tolist()[0][1] == pytest.approx(-63.6)


def test_errors_are_at_most_half_a_step_and_few_levels_are_left(vgg):
    before = copy.deepcopy(vgg.state_dict())
    rounded, _ = quantize_int8(vgg)
    for name, dense in vgg.named_parameters():
        weight = rounded.get_parameter(name).detach()
        assert torch.equal(dense, before[name])
        if dense.dim() < 2:
            assert torch.equal(weight, dense)
            continue
        step = dense.detach().abs().flatten(1).amax(1) / 127
        error = (weight - dense).detach().abs().flatten(1)
        assert (error <= 0.5001 * step.view(-1, 1)).all()
        assert error.max() > 0
        assert all(len(row.unique()) <= 255 for row in weight.flatten(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_do_not_wrap_around(dtype):
    """In bfloat16 the largest weight over its rounded scale can exceed 127.5; 128 would be stored as -128."""
    model = nn.Linear(4, 400, bias=False).to(dtype)
    generator = torch.Generator().manual_seed(0)
    model.weight.data = (torch.rand(400, 4, generator=generator) + 0.5).to(dtype)
    rounded, _ = quantize_int8(model)
    peak = model.weight.abs().amax(1).float()
    assert (rounded.weight.abs().amax(1).float() <= 1.01 * peak).all()
    state = quantized_levels(model)
    assert (state["weight"] > 0).all()


def quantized_levels(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the measured file would hold: caught on its way to the encoder."""
    import pruning.quantize as subject

    caught, original = {}, subject.encode_state
    subject.encode_state = lambda state: caught.update(state) or original(state)
    try:
        subject.quantize_int8(model)
    finally:
        subject.encode_state = original
    return caught


def test_bytes_are_those_of_a_file_with_int8_weights(vgg):
    """The same tensors through the safetensors library."""
    state = {}
    for name, tensor in vgg.state_dict().items():
        if tensor.dim() >= 2:
            state[name] = torch.zeros(tensor.shape, dtype=torch.int8)
            state[f"{name}.scale"] = torch.ones(tensor.shape[0])
        else:
            state[name] = tensor
    assert quantize_int8(vgg)[1] == len(safetensors.torch.save(state))


def test_a_row_of_zeros_stays_zero():
    model = nn.Linear(3, 2)
    model.weight.data[0] = 0.0
    rounded, _ = quantize_int8(model)
    assert rounded.weight[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.isfinite(rounded.weight).all()


def test_nonzero_share_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
    bits = 8 * (72 + 20) + 32 * (4 + 8 + 5) + 32 * (4 + 5)
    assert nonzero_share_int8(model) == bits / (32 * (72 + 4 + 8 + 20 + 5))
