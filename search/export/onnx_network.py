"""An ONNX file as a network that PyTorch code can call, so that a workload scores it like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning.outputs import map_tensors, tensors_in


class OnnxNetwork(nn.Module):
    """Calls ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Args:
        like: an output of the network that the file was made of; what is returned has its form.
    """

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._like = like

    def forward(self, *parts: Any, **named: Any) -> Any:
        """Outputs for inputs as the network takes them, tensors alone or in containers, in the file's order."""
        given = zip(self._session.get_inputs(), tensors_in([*parts, named]), strict=True)
        found = iter(self._session.run(None, {of.name: tensor.numpy() for of, tensor in given}))
        return map_tensors(self._like, lambda _: torch.from_numpy(next(found)))
