"""ONNX export of a pruned network, checked against PyTorch."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from search.errors import EnvironmentProblem, GoalMissed

TOLERANCE = 1e-4
"""Largest difference to PyTorch, relative to the largest output."""


def write_onnx(model: nn.Module, example_input: Tensor, path: Path) -> None:
    """Write `model.onnx` with a free batch dimension and compare it with PyTorch on the example input.

    Raises:
        EnvironmentProblem: the extra `onnx` is not installed.
        GoalMissed: the file computes something else.
    """
    require_onnx()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model.eval(),
            (example_input.contiguous(),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    difference = onnx_difference(model, example_input, path)
    if difference > TOLERANCE:
        raise GoalMissed(
            f"the ONNX file differs from PyTorch by {difference:.1e} of the largest output, allowed is {TOLERANCE:g}: "
            "export without --onnx"
        )


def onnx_difference(model: nn.Module, example_input: Tensor, path: Path) -> float:
    """Largest difference of outputs over the largest output, after onnx's own checker passed the file."""
    require_onnx()
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: example_input.contiguous().numpy()})
    with torch.inference_mode():
        expected = model.eval()(example_input)
    return float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def require_onnx() -> None:
    """Raise `EnvironmentProblem` unless the extra `onnx` is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"ONNX needs the package {error.name!r}: pip install 'prunefront[onnx]'") from None
