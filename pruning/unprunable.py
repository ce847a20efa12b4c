"""The weights no policy can name: what holds them, and why they stay whole in every granularity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from pruning.modules import prunable_weights
from spaces.network import Layer

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_PARTS = ("_g", "_v", "_orig")
"""What hook-style weight norm, spectral norm and PyTorch's pruning append to the name of a weight they replace."""


def unprunable_weights(model: nn.Module, positions: Mapping[str, int]) -> list[Layer]:
    """Every parameter that is no prunable weight, in model order; biases, and scales of norms and PReLUs, are left out.

    Args:
        positions: parameter -> how often one example multiplies each of its elements; 0 for those not named.
    """
    prunable, names = prunable_weights(model), defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    found = []
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if name not in prunable and not _is_bias(name) and not _scales_channels(owner):
            kind, reason = _reason(model, name, owner, names[id(parameter)])
            counted = positions.get(name, 0)
            found.append(Layer(name, kind, tuple(parameter.shape), counted, obstacle=reason, prunable=False))
    return found


def _is_bias(name: str) -> bool:
    attribute = name.rpartition(".")[2]
    return attribute.startswith("bias") or attribute.endswith("bias")


def _scales_channels(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or isinstance(module, nn.PReLU)


def _reason(model: nn.Module, name: str, owner: nn.Module, names: list[str]) -> tuple[str, str]:
    """The kind of a weight that is no prunable layer's, and why it stays whole."""
    path, _, attribute = name.rpartition(".")
    label = f"{type(owner).__name__} {path!r}" if path else type(owner).__name__
    if len(names) > 1:
        others = ", ".join(repr(other) for other in names if other != name)
        return _kind(owner), f"it is tied: {others} is the same tensor"
    if isinstance(owner, ParametrizationList):
        path, _, attribute = path.rpartition(".parametrizations.")
        return "parametrized", f"{type(model.get_submodule(path)).__name__} {path!r} computes its {attribute} from it"
    for part in _PARTS:
        if attribute.endswith(part) and hasattr(owner, attribute.removesuffix(part)):
            return "parametrized", f"{label} computes its {attribute.removesuffix(part)} from it"
    if isinstance(owner, _RECURRENT):
        return "recurrent", f"{label} multiplies it at every step: recurrent weights stay whole"
    if isinstance(owner, nn.MultiheadAttention):
        return "attention", f"{label} splits its product into heads: only its out_proj is a layer of its own"
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding", f"{label} looks its rows up: tables stay whole"
    return "parameter", f"it is a parameter of {label}, of no known layer"


def _kind(owner: nn.Module) -> str:
    kinds = {nn.Embedding: "embedding", nn.EmbeddingBag: "embedding", nn.MultiheadAttention: "attention"}
    kinds |= dict.fromkeys(_RECURRENT, "recurrent") | {nn.Linear: "linear"}
    return next((kind for cls, kind in kinds.items() if isinstance(owner, cls)), "parameter")
