"""A network of 8-bit integers as ONNX: weights and activations between QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pruning.file.rounding import Rounded
from pruning.modules import module_of, output_dim, prunable_weights
from pruning.outputs import tensors_in
from pruning.trees import ModelInputs, NetworkInputs, contents, run
from search.errors import GoalMissed
from search.export.onnx_file import onnx_difference, require_onnx, root_cause, write_onnx
from search.export.onnx_integers import INT8_BITS
from search.export.onnx_network import OnnxNetwork
from search.training.own_scores import Metrics
from search.training.scoring import score
from search.workloads import Workload
from spaces.wording import listed

if TYPE_CHECKING:
    import onnx

CALIBRATION_EXAMPLES = 256
"""Examples whose smallest and largest activations set the ranges of 8 bits; the same each time."""
CALIBRATION_BATCH = 32
LARGEST = 127
SAME = 1e-5
"""How far two channels may be from multiples of one another, relative to the largest weight: float32's rounding."""
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Nodes whose second input is a weight."""
QUANTIZED = "_quantized"
"""What ONNX Runtime appends to the name of a weight whose whole numbers it writes."""
_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Int8:
    """What a file of 8-bit integers is worth, by ONNX Runtime on this machine.

    Attributes:
        scores: on validation data.
        difference: the largest from PyTorch's outputs on the example input, relative to the largest output.
        examples: how many set the ranges of activations.
        own: weights whose whole numbers are those of the policy's bits, up to the sign of a folded norm's channel.
        new: weights that were rounded for this file.
    """

    scores: Metrics
    difference: float
    examples: int
    own: tuple[str, ...]
    new: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "accuracy": self.scores.accuracy,
            "loss": self.scores.loss,
            "output_difference": self.difference,
            "calibration_examples": self.examples,
            "weights_as_in_policy": list(self.own),
            "weights_rounded_anew": list(self.new),
        }


def write_int8(model: nn.Module, workload: Workload, path: Path, rounded: Mapping[str, Rounded]) -> Int8:
    """Write the network with weights and activations of 8 bits in QDQ form, and score it on validation data.

    Weights are symmetric int8 with a scale an output channel, so that zeros stay zeros; activations are int8 with a
    scale and a zero point a tensor, from the smallest and the largest value on calibration data (or fit data).

    Args:
        rounded: rounded weights by name; those of up to 8 bits keep their whole numbers.

    Raises:
        EnvironmentProblem: the extra `onnx` is not installed.
        GoalMissed: the network cannot be written as ONNX or not in 8 bits, or the file does not run. No file is left.
    """
    require_onnx()
    examples = _calibration_inputs(workload)
    with TemporaryDirectory(prefix="prunefront-") as folder:
        floats = Path(folder) / "float.onnx"
        write_onnx(model, workload.example_input, floats)
        try:
            _quantize(floats, path, model, examples, rounded)
            difference = onnx_difference(model, workload.example_input, path)
            scores = int8_scores(model, workload, path)
        except Exception as error:  # onnx and onnxruntime have errors of many kinds, and no common one
            path.unlink(missing_ok=True)
            raise GoalMissed(f"the network cannot be quantised to 8 bits ({root_cause(error)})") from error
    if not math.isfinite(difference):
        path.unlink()
        raise GoalMissed("the network cannot be quantised to 8 bits (its outputs would not be finite)")
    if not _has_integer_weights(path):
        path.unlink()
        raise GoalMissed(
            f"the network cannot be quantised to 8 bits (ONNX Runtime left all of its layers in floats{_why(model)})"
        )
    found = integers_of(path, model)
    own = tuple(name for name in found if name in rounded and _same_integers(found[name], rounded[name]))
    return Int8(scores, difference, len(examples), own, tuple(name for name in found if name not in own))


def int8_scores(model: nn.Module, workload: Workload, path: Path) -> Metrics:
    """Loss and metric on validation data of a file that was made of a network, by ONNX Runtime."""
    with torch.no_grad():
        like = run(model.eval(), workload.example_input)
    return score(OnnxNetwork(path, like), "validation", workload)


def integers_of(path: Path, model: nn.Module) -> dict[str, _Array]:
    """Name of a prunable weight -> its whole numbers in a file, output channels first, the rest flat."""
    import onnx

    file = onnx.load(path, load_external_data=False)
    held = {tensor.name: tensor for tensor in file.graph.initializer}
    axes = {
        node.input[0]: attribute.i
        for node in file.graph.node
        for attribute in node.attribute
        if node.op_type == "DequantizeLinear" and attribute.name == "axis"
    }
    found = {}
    for name in prunable_weights(model):
        if (own := f"{name}{QUANTIZED}") in held:
            dim = axes.get(own, output_dim(module_of(model, name)))
            found[name] = _by_channel(onnx.numpy_helper.to_array(held[own]), dim)
    return found


def _has_integer_weights(path: Path) -> bool:
    import onnx

    held = onnx.load(path, load_external_data=False).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in held)


def _why(model: nn.Module) -> str:
    """Why a network stays in floats, at the end of a sentence."""
    kinds = {str(weight.dtype) for weight in prunable_weights(model).values()}
    if kinds == {"torch.float32"}:
        return ": it quantises convolutions and linear layers that are called as modules"
    return f", weights of {listed(sorted(kinds))}: it takes torch.float32"


def lost_zeros(path: Path, model: nn.Module) -> tuple[int, int]:
    """How many zeros of a network's prunable weights are none in a file, and how many there are."""
    found = integers_of(path, model)
    zeros = {name: rows_of(model, name) == 0 for name in found}
    return (
        sum(int(np.count_nonzero(found[name][zeros[name]])) for name in found),
        sum(int(zero.sum()) for zero in zeros.values()),
    )


def rows_of(model: nn.Module, name: str) -> _Array:
    """A prunable weight, output channels first, the rest flat."""
    return _by_channel(prunable_weights(model)[name].detach().numpy(), output_dim(module_of(model, name)))


def _by_channel(array: _Array, dim: int) -> _Array:
    return np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)


def _same_integers(found: _Array, one: Rounded) -> bool:
    """Whether each channel has its own whole numbers, or all with the other sign."""
    own = _by_channel(one.integers.numpy(), one.dim)
    return found.shape == own.shape and bool(((found == own).all(1) | (found == -own).all(1)).all())


def _calibration_inputs(workload: Workload) -> NetworkInputs:
    if isinstance(workload.example_input, ModelInputs) and workload.example_input.forward is not None:
        raise GoalMissed(
            "the network cannot be quantised to 8 bits (the workload calls it by a `forward` of its own, which ONNX "
            "Runtime cannot)"
        )
    split = next((name for name in ("calibration", "fit") if workload.reads(name)), None)
    if split is None:
        raise GoalMissed(
            "the network cannot be quantised to 8 bits (no calibration data: give the workload calibration=)"
        )
    return workload.examples(split).some(CALIBRATION_EXAMPLES)[0]


def _quantize(
    floats: Path, path: Path, model: nn.Module, examples: NetworkInputs, rounded: Mapping[str, Rounded]
) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = floats.with_name("ready.onnx")
    quant_pre_process(str(floats), str(ready), skip_symbolic_shape=True)
    file = onnx.load(ready)
    scales = {}
    for node, weight in _named_weights(file.graph, model):
        array, axis = onnx.numpy_helper.to_array(weight), _output_axis(node)
        if _has_groups_of_outputs(node):  # whose bias ONNX Runtime's tool cannot round by such scales
            where, own = {}, _scales(array.reshape(1, -1), None)
        else:
            where, own = {"axis": axis}, _scales(_by_channel(array, axis), rounded.get(weight.name))
        scales[weight.name] = [
            {**where, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(0)} for scale in own
        ]
    quantize_static(
        file, path, _Batches(file, examples), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": scales},
    )  # fmt: skip


class _Batches:
    """Batches of inputs by name, one after the other, as ONNX Runtime's calibration takes them."""

    def __init__(self, file: onnx.ModelProto, examples: NetworkInputs) -> None:
        self._names = [one.name for one in file.graph.input]
        self._left = iter(examples.split(CALIBRATION_BATCH))

    def get_next(self) -> dict[str, _Array] | None:
        for batch in self._left:
            tensors = tensors_in(contents(batch))
            return {name: tensor.numpy() for name, tensor in zip(self._names, tensors, strict=True)}
        return None


def _named_weights(graph: onnx.GraphProto, model: nn.Module) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """The layers of a graph with their weights; those of prunable weights get their names.

    Channels may be multiples of the network's own, since norms are folded into them.
    """
    import onnx

    held, own = {tensor.name: tensor for tensor in graph.initializer}, prunable_weights(model)
    seen = set()
    for node in graph.node:
        if node.op_type not in LAYERS or node.input[1] not in held or node.input[1] in seen:
            continue
        weight = held[node.input[1]]
        rows = _by_channel(onnx.numpy_helper.to_array(weight), _output_axis(node))
        first = [weight.name] if weight.name in own else []
        found = next((n for n in [*first, *own] if n not in seen and _are_multiples(rows, rows_of(model, n))), None)
        if found is not None:
            for other in graph.node:
                other.input[:] = [found if name == weight.name else name for name in other.input]
            weight.name = found
        seen.add(weight.name)
        yield node, weight


def _output_axis(node: onnx.NodeProto) -> int:
    """Which axis of a layer's second input has its output channels."""
    return int(node.op_type != "Conv" and not _attribute(node, "transB"))


def _has_groups_of_outputs(node: onnx.NodeProto) -> bool:
    """Whether each index of that axis is a channel in every group."""
    return node.op_type == "ConvTranspose" and _attribute(node, "group") > 1


def _attribute(node: onnx.NodeProto, name: str) -> int:
    """A whole number, 0 where the node has none of this name."""
    return next((one.i for one in node.attribute if one.name == name), 0)


def _multiples(rows: _Array, own: _Array) -> _Array:
    """(channels,): by how much each of `own`'s channels has to be multiplied to be nearest to that of `rows`."""
    wide = own.astype(np.float64)
    return (rows * wide).sum(1) / np.maximum((wide * wide).sum(1), np.finfo(np.float64).tiny)


def _are_multiples(rows: _Array, own: _Array) -> bool:
    if rows.shape != own.shape:
        return False
    apart = np.abs(rows - _multiples(rows, own)[:, None] * own)
    return bool(apart.max(initial=0) <= SAME * np.abs(rows).max(initial=0))


def _scales(rows: _Array, one: Rounded | None) -> _Array:
    """(channels,) float32: those of the rounded weight's whole numbers, or those that clip nothing.

    A channel of zeros alone could have any; it has the least of the others', since a layer's bias is rounded to
    multiples of it.
    """
    own = _by_channel(one.integers.numpy(), one.dim) if one is not None and one.bits <= INT8_BITS else None
    if own is not None and _are_multiples(rows, own):
        scales = np.abs(_multiples(rows, own))
    else:
        scales = np.abs(rows).max(1, initial=0) / LARGEST
    scales[scales == 0] = scales[scales > 0].min(initial=1.0)
    return scales.astype(np.float32)
