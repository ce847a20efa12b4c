"""How many examples a network is given at once when it is not being trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning.devices import device_of, forked_rng
from pruning.multiplications import eager
from pruning.trees import NetworkInputs, run

BATCH_BYTES = 128 * 2**20
"""The most bytes that the largest tensor of a pass takes for a batch; the pass as a whole takes a few times that.
Measured on photos of 224 x 224: ResNet-50 takes 41 at once and 463 MiB more at the peak, EfficientNet-B0 27 and 286
MiB.
"""
MOST_EXAMPLES = 1000
_FEW, _MORE = 2, 4
"""Examples in the two passes whose tensors differ by what an example adds; not 1, which some networks refuse."""


def examples_at_once(model: nn.Module, inputs: NetworkInputs, most: int = MOST_EXAMPLES) -> int:
    """As many examples as `BATCH_BYTES`, 128 MiB, hold of the largest tensor, at least 1 and at most `most`.

    That tensor is the input, or any that the model makes of it in eval mode, seen in passes of two and of four
    examples; what happens inside one fused operation is not seen. A network's outputs depend on this number by rounding
    only. The model and the random state are not changed.

    Args:
        inputs: (n, ...), on any device, of which the first four are tried.
    """
    if len(inputs) <= _MORE:
        return max(1, len(inputs))
    largest = inputs[:1].nbytes
    device = device_of(model, inputs)
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), forked_rng(device), eager():
            model.eval()
            few, more = _made(model, inputs[:_FEW].to(device)), _made(model, inputs[:_MORE].to(device))
        if len(few) == len(more):
            largest = max([largest, *((b - a) // (_MORE - _FEW) for a, b in zip(few, more, strict=True))])
        else:
            largest = max([largest, *(size // _MORE for size in more)])
    except Exception:  # what fails here fails in earnest with a better message, or not at all
        pass
    finally:
        for module, flag in training.items():
            module.training = flag
    return max(1, min(most, BATCH_BYTES // max(1, largest)))


def _made(model: nn.Module, inputs: NetworkInputs) -> list[int]:
    """Bytes of every tensor made in a pass, in order."""
    with _Sizes() as sizes:
        run(model, inputs)
    return sizes.found


class _Sizes(TorchDispatchMode):
    """Sees the tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        made = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.found += [min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in made]
        return result
