"""Rounded weights as whole numbers in an ONNX file: int8 with a DequantizeLinear node behind each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.file.rounding import Rounded

INT8_BITS = 8
"""Bits of the widest whole numbers that are written as such; wider ones would save nothing over their products."""
DEQUANTIZE = "DequantizeLinear"
_INSIDE = re.compile(r"\bparametrizations\.(\w+)")


class _Dequantized(nn.Module):
    """Whole numbers times scales, as one node of the ONNX file; it computes nothing in PyTorch."""

    scale: Tensor

    def __init__(self, one: Rounded) -> None:
        super().__init__()
        self.dim = one.dim
        scales = one.scales.float()
        self.register_buffer("scale", torch.where(scales == 0, 1.0, scales))  # zeros stay zeros by any scale

    def forward(self, integers: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            DEQUANTIZE, [integers, self.scale], {"axis": self.dim}, dtype=torch.float32, shape=integers.shape
        )


def hold_integers_(model: nn.Module, rounded: Mapping[str, Rounded]) -> None:
    """Replace rounded weights of up to 8 bits by their whole numbers, in place: for an export to ONNX, nothing else."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, one in rounded.items():
        if one.bits > INT8_BITS or parameters[name].dtype != torch.float32:
            continue
        integers = nn.Parameter(one.integers, requires_grad=False)
        for other in [other for other, parameter in parameters.items() if parameter is parameters[name]]:
            path, _, attribute = other.rpartition(".")
            module = model.get_submodule(path)
            if not parametrize.is_parametrized(module, attribute):  # one module may have several names
                setattr(module, attribute, integers)
                parametrize.register_parametrization(module, attribute, _Dequantized(one), unsafe=True)


def name_after_weights(path: Path) -> None:
    """Give the whole numbers in an ONNX file their weights' names, and their scales these with `.scale` behind them."""
    import onnx

    file = onnx.load(path)
    inputs = {name for node in file.graph.node if node.op_type == DEQUANTIZE for name in node.input}
    plain = {name: _INSIDE.sub(r"\1", name).removesuffix(".original").replace(".0.scale", ".scale") for name in inputs}
    for tensor in file.graph.initializer:
        tensor.name = plain.get(tensor.name, tensor.name)
    for node in file.graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
    onnx.save(file, path)
