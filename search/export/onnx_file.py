"""ONNX export of a pruned network, checked against PyTorch."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.file.rounding import Rounded
from pruning.outputs import output_names, tensors_in
from pruning.trees import ModelInputs, NetworkInputs, contents, run
from search.errors import EnvironmentProblem, GoalMissed
from search.export.onnx_integers import hold_integers_, name_after_weights

TOLERANCE = 1e-4
"""Largest accepted difference from PyTorch, relative to the largest output."""


def write_onnx(
    model: nn.Module, example_input: NetworkInputs, path: Path, rounded: Mapping[str, Rounded] = MappingProxyType({})
) -> None:
    """Write `model.onnx` with a free batch dimension and compare it with PyTorch on the example input.

    Args:
        rounded: rounded weights by name; those of up to 8 bits are written as int8 with a scale an output channel, all
            others as floats.

    Raises:
        EnvironmentProblem: the extra `onnx` is not installed.
        GoalMissed: the network cannot be written as ONNX, or its file does not run or computes something else; tells
            why. No file is left.
    """
    require_onnx()
    try:
        _write(model, example_input, path, rounded)
        difference = onnx_difference(model, example_input, path)
    except Exception as error:  # torch.onnx, onnx and onnxruntime have errors of many kinds, and no common one
        path.unlink(missing_ok=True)
        raise GoalMissed(f"the network cannot be written as ONNX ({root_cause(error)})") from error
    if not difference <= TOLERANCE:  # NaN is no agreement
        path.unlink()
        raise GoalMissed(
            f"its outputs differ from PyTorch's by {difference:.1e} of the largest, more than the {TOLERANCE:g} allowed"
        )


def _write(model: nn.Module, example_input: NetworkInputs, path: Path, rounded: Mapping[str, Rounded]) -> None:
    network = copy_model(model).eval()  # tracing leaves tensors without values in a network that keeps its inputs
    with torch.no_grad():
        outputs = run(copy_model(network), example_input)
    hold_integers_(network, rounded)
    network = _unwrapped(network)
    batch, tensors = torch.export.Dim("batch"), _inputs(example_input)
    plain = isinstance(example_input, Tensor) and isinstance(outputs, Tensor) and not _takes_any_number(network)
    several = None if isinstance(example_input, Tensor) else example_input
    shapes = [{0: batch} if tensor.ndim else {} for tensor in tensors]
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            network if plain else (_Flat(network) if several is None else _FlatBoth(network, several)).eval(),
            tensors,
            str(path),
            dynamo=True,
            input_names=None if several is None else output_names(several.tree),
            output_names=None if plain else output_names(outputs),
            dynamic_shapes=shapes if several is None else [shapes],
            external_data=False,
            verbose=False,
        )
    _remove_notes(path)
    if rounded:
        name_after_weights(path)


def _remove_notes(path: Path) -> None:
    """Remove what PyTorch notes of each node, which nothing runs: the lines of code it comes from, with the paths that
    their files have on this machine.
    """
    import onnx

    file = onnx.load(path)
    graphs = [file.graph]
    while graphs:
        graph = graphs.pop()
        for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del noted.metadata_props[:]
        for node in graph.node:
            graphs += [
                inner for attribute in node.attribute for inner in (*attribute.graphs, attribute.g) if inner.node
            ]
    onnx.save(file, path)


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside `torch.compile` or `DataParallel`, neither of which PyTorch's exporter supports."""
    while True:
        inner = getattr(network, "_orig_mod", network.module if isinstance(network, nn.DataParallel) else None)
        if inner is None:
            return network
        network = inner


def _takes_any_number(network: nn.Module) -> bool:
    """Whether the forward function names no inputs, as in wrappers that pass on whatever they get."""
    parameters = inspect.signature(network.forward).parameters.values()
    return next(iter(parameters)).kind is inspect.Parameter.VAR_POSITIONAL


class _Flat(nn.Module):
    """The network with one input and its output tensors in one tuple, since ONNX has no other containers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.network(inputs)))


class _FlatBoth(nn.Module):
    """The network with all tensors of its inputs one after the other, and its output tensors in one tuple."""

    def __init__(self, network: nn.Module, like: ModelInputs) -> None:
        super().__init__()
        self.network, self._like = network, like

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        return tuple(tensors_in(run(self.network, self._like.map(lambda _: next(given)))))


def _inputs(example: NetworkInputs) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors_in(contents(example)))


def root_cause(error: BaseException) -> str:
    """The first line of the original error; torch.onnx wraps the one that names the operator."""
    while error.__cause__:
        error = error.__cause__
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def onnx_difference(model: nn.Module, example_input: NetworkInputs, path: Path) -> float:
    """Largest difference of outputs relative to the largest output, after onnx's own checker accepted the file."""
    require_onnx()
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = zip(session.get_inputs(), _inputs(example_input), strict=True)
    found = session.run(None, {of.name: tensor.numpy() for of, tensor in given})
    with torch.no_grad():
        expected = list(tensors_in(run(model.eval(), example_input)))
    pairs = zip((torch.from_numpy(array).double() for array in found), expected, strict=True)
    return worst(_difference(got, to) for got, to in pairs)


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def worst(differences: Iterable[float]) -> float:
    """The largest number, 0 if there is none; NaN, which is never agreement, if any is NaN."""
    found = [0.0, *differences]
    return math.nan if any(map(math.isnan, found)) else max(found)


def require_onnx() -> None:
    """Raise `EnvironmentProblem` unless the extra `onnx` is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"ONNX needs the package {error.name!r}: pip install 'prunefront[onnx]'") from None
