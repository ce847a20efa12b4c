"""The multiplications of a forward pass, as PyTorch's dispatcher sees them.

Counted are the matrix products and convolutions that `torch.utils.flop_counter` counts (two flops are one MAC),
wherever they are called from: modules, `torch.nn.functional`, `einsum`, parametrised and tied weights. Recurrent
kernels and deformable convolutions, which it leaves out, are counted from their shapes. Products of two activations,
such as attention scores, are not counted, since no stored value is multiplied in them.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pruning.outputs import tensors_in
from pruning.trees import NetworkInputs, run

PRODUCTS = {
    "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "_scaled_mm": (0, 1), "convolution": (0, 1),
    "_convolution": (0, 1), "cudnn_convolution": (0, 1), "convolution_overrideable": (0, 1),
    "_slow_conv2d_forward": (0, 1), "deform_conv2d": (0, 1),
}  # fmt: skip
"""Operator -> the places of its two factors among its arguments."""
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_lstm_mps")
"""Operators that run a complete recurrent layer, in which every weight matrix is multiplied once a step."""
UNCOUNTED = (
    "mv", "addmv", "dot", "vdot", "_trilinear", "_cdist_forward", "_euclidean_dist", "_int_mm", "_grouped_mm",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_sparse_addmm",
)  # fmt: skip
"""Operators of PyTorch's own that multiply but are not counted."""
ATTENTION = "_scaled_dot_product"
KNOWN = ("aten", "prim", "prims", "torchvision")
"""Namespaces whose operators multiply nothing except where stated above."""


@dataclass(frozen=True)
class Multiplications:
    """MACs of one example.

    Attributes:
        positions: parameter -> how often each of its elements is multiplied.
        others: MACs of everything else that is counted.
        uncounted: what is not counted, each in a few words.
    """

    positions: Mapping[str, int]
    others: int
    uncounted: tuple[str, ...] = ()


def count_multiplications(model: nn.Module, example_input: NetworkInputs) -> Multiplications:
    """Watch one forward pass in eval mode, without compilation and fused attention; the model is not changed.

    Args:
        example_input: a batch; counts are divided by its first dimension, rounded down.
    """
    counter = _Counter(model, example_input)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with eager(), torch.no_grad():
            try:
                with counter:
                    run(model, example_input)
            except Exception as error:
                run(model, example_input)  # fails again, unless it is the watching that it cannot bear
                counter = _Counter(model, example_input)
                counter.missed[f"anything, as it cannot be watched: {type(error).__name__}"] = None
    finally:
        for module, flag in training.items():
            module.training = flag
    return counter.found(len(example_input))


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Every module runs its own operators: compiled code and attention's fused inference kernel are not used."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # what was compiled has loaded the compiler, which takes seconds to import
        loaded = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(TorchDispatchMode):
    """Tells what depends on the example from what is fixed: parameters, buffers, constants, and all that is computed
    from these alone.

    It is storages that are fixed or not, so that views and in-place writes are followed.
    """

    def __init__(self, model: nn.Module, example_input: NetworkInputs) -> None:
        super().__init__()
        self._fixed: dict[int, Tensor] = {}  # by storage; holding a tensor keeps its storage's identity unique
        self._origins: dict[tuple[int, int], tuple[str, int]] = {}
        self._numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
        for tensor in model.buffers():
            self._fix(tensor)
        for name, parameter in model.named_parameters():
            self._fix(parameter, name)
        for tensor in tensors_in(example_input):
            self._fixed.pop(_storage(tensor), None)
        self._by_weight: Counter[str] = Counter()
        self._total = 0
        self.missed: dict[str, None] = {}

    def found(self, examples: int) -> Multiplications:
        """The counts for one example."""
        positions = {name: self._by_weight[name] // numel // examples for name, numel in self._numel.items() if numel}
        inside = sum(count * self._numel[name] for name, count in positions.items())
        rest = (self._total - inside * examples) // examples
        return Multiplications({name: count for name, count in positions.items() if count}, rest, tuple(self.missed))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name not in PRODUCTS and name not in RECURRENT and function is not torch.ops.prim.device.default:
            with self:
                if (parts := function.decompose(*args, **kwargs)) is not NotImplemented:
                    return parts
        out = function(*args, **kwargs)
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if name in PRODUCTS:
            self._count(name, function, args, kwargs, out)
        elif name in RECURRENT:
            self._count_recurrent(inputs)
        else:
            self._note(name, function.namespace, inputs)
        self._follow(inputs, [one for one in tree_leaves(out) if isinstance(one, Tensor)])
        return out

    def _count(self, name: str, function: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        factors = [args[place] for place in PRODUCTS[name]]
        if not any(map(self._is_fixed, factors)):
            self.missed["products of two activations, such as attention's scores"] = None
            return
        if name == "deform_conv2d":
            macs = out.numel() // max(out.shape[1], 1) * factors[1].numel()
        else:
            macs = flop_registry[function.overloadpacket](*args, **kwargs, out_val=out) // 2
        self._add(macs, next(filter(None, map(self._origin, reversed(factors))), None))

    def _count_recurrent(self, inputs: list[Tensor]) -> None:
        steps = prod(inputs[0].shape[:-1])
        for weight in inputs[1:]:
            if weight.dim() == 2 and (name := self._origin(weight)) is not None:
                self._add(steps * weight.numel(), name)

    def _add(self, macs: int, weight: str | None) -> None:
        self._total += macs
        if weight is not None:
            self._by_weight[weight] += macs

    def _note(self, name: str, namespace: str, inputs: list[Tensor]) -> None:
        if name.startswith(ATTENTION):
            self.missed["products of two activations, such as attention's scores"] = None
        elif name in UNCOUNTED or namespace not in KNOWN:
            weights = [origin for origin in map(self._origin, inputs) if origin]
            if weights and not all(map(self._is_fixed, inputs)):
                self.missed[f"{name} of {weights[0]!r}"] = None

    def _follow(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Outputs computed from fixed tensors are fixed; one with as many elements as a weight it comes from stands for
        that weight.
        """
        if not all(map(self._is_fixed, inputs)):
            for tensor in outputs:
                self._fixed.pop(_storage(tensor), None)
            return
        origins = {origin: self._numel[origin] for origin in map(self._origin, inputs) if origin}
        for tensor in outputs:
            if _storage(tensor) in self._fixed:
                continue
            same = [origin for origin, numel in origins.items() if numel == tensor.numel() > 1]
            self._fix(tensor, same[0] if same else None)

    def _fix(self, tensor: Tensor, name: str | None = None) -> None:
        self._fixed[_storage(tensor)] = tensor
        if name is not None:
            self._origins[_place(tensor)] = name, tensor.numel()

    def _is_fixed(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._fixed

    def _origin(self, tensor: Tensor) -> str | None:
        """The parameter whose elements a fixed tensor holds in full; elements repeated by expanded views count once."""
        found = self._origins.get(_place(tensor))
        if found is None or not self._is_fixed(tensor):
            return None
        name, numel = found
        own = prod(length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        return name if own == numel else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(tensor: Tensor) -> tuple[int, int]:
    return _storage(tensor), int(tensor.storage_offset())
