"""Masks of `torch.nn.utils.prune`, both ways.

PyTorch keeps a pruned tensor `NAME` as the parameter `NAME_orig` and the buffer `NAME_mask` of ones and zeros; a hook
sets `NAME = NAME_orig * NAME_mask` before each forward pass. Here a model stays plain, and its masks are bool tensors
outside it, True = kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruning.copying import copy_model
from pruning.masks import achieved_sparsity
from pruning.modules import inputs_of_weights
from pruning.units import expand_units, unit_scores, units
from spaces.granularity import obstacle_to, pattern_of
from spaces.network import SECOND, Inputs
from spaces.policy import PruningPolicy
from spaces.validation import unknown

ORIGINAL, MASK = "_orig", "_mask"
"""What PyTorch appends to a pruned tensor's name."""
RECOGNISED = ("channel", "kernel", "vector", "1:4", "2:4", "*:4", "*:8")
"""Granularities that a mask is searched for, the most specific first: larger units, then fixed patterns, then free
ones.
"""
PRUNING_TYPES = ("unstructured", "structured", "global")


@dataclass(frozen=True)
class MaskedModel:
    """A plain model whose masked elements are zero, and the masks: parameter name -> bool tensor."""

    model: nn.Module
    masks: Mapping[str, Tensor]


@dataclass(frozen=True)
class MaskedState:
    """A plain state dict whose masked elements are zero, and the masks: tensor name -> bool tensor."""

    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


@dataclass(frozen=True)
class MethodChoice:
    """What a method chose for one weight: `make_mask(weight, sparsity, granularity, scores=scores)` is its mask.

    Attributes:
        sparsity: achieved, in units of the granularity.
        granularity: by `mask_granularity`.
        scores: float32 of the weight's shape, 1 = kept, 0 = removed.
    """

    sparsity: float
    granularity: str
    scores: Tensor


def from_torch_prune(model: nn.Module) -> MaskedModel:
    """A plain copy of a model pruned by `torch.nn.utils.prune`, and its masks.

    Each product is computed anew from original and mask, so an optimizer step after the last forward pass counts; where
    the mask is 0 it is +0.0, whatever the original holds. The copy has no pruning hooks (other hooks stay) and can be
    deep-copied, unlike PyTorch's own. Parameters shared by modules stay shared if their masks are equal. `model` is not
    changed; one that is not pruned gives a copy and no masks.

    Raises:
        ValueError: a mask with values other than 0 and 1, or of another shape.
    """
    hooks = _pruning_hooks(model)
    memo: dict[int, Any] = {}  # what the copy is about to lose is not copied: products cannot be, hooks need not be
    for path, _, hook in hooks:
        product = getattr(model.get_submodule(path), hook._tensor_name)
        memo |= {id(hook): hook, id(product): product}
    plain = copy_model(model, memo)
    masks: dict[str, Tensor] = {}
    shared: dict[int, tuple[nn.Parameter, Tensor, nn.Parameter]] = {}
    for path, key, hook in hooks:
        module, attribute = plain.get_submodule(path), hook._tensor_name
        name = f"{path}.{attribute}" if path else attribute
        original = getattr(module, attribute + ORIGINAL)
        mask = _checked_mask(name + MASK, getattr(module, attribute + MASK), original)
        earlier = shared.get(id(original))
        if earlier is None or not torch.equal(earlier[1], mask):
            parameter = nn.Parameter(_product(original, mask), original.requires_grad)
            shared[id(original)] = earlier = original, mask, parameter
        del module._forward_pre_hooks[key]
        _put_back(module, attribute, earlier[2])
        masks[name] = mask
    return MaskedModel(plain, masks)


def state_from_torch_prune(state: Mapping[str, Tensor], keep: Collection[str] = ()) -> MaskedState:
    """The plain form of a state dict with `NAME_orig` and `NAME_mask`; a plain one comes back equal, without masks.

    Args:
        state: is not changed; its other tensors are passed on.
        keep: names that merely end alike, because the model has them itself.

    Raises:
        ValueError: `NAME_orig` without `NAME_mask`, beside `NAME`, of another shape than its mask, or with a mask that
            holds values other than 0 and 1.

    >>> masked = state_from_torch_prune({"a_orig": torch.tensor([3.0, 4.0]), "a_mask": torch.tensor([0.0, 1.0])})
    >>> masked.state["a"].tolist(), masked.masks["a"].tolist()
    ([0.0, 4.0], [False, True])
    """
    pruned = [name.removesuffix(ORIGINAL) for name in state if name.endswith(ORIGINAL) and name not in keep]
    masks: dict[str, Tensor] = {}
    for name in pruned:
        if name in state:
            raise ValueError(f"both {name!r} and {name + ORIGINAL!r} are there: keep one of them")
        if name + MASK not in state:
            raise ValueError(f"{name + ORIGINAL!r} has no {name + MASK!r} beside it: save both, or prune.remove first")
        masks[name] = _checked_mask(name + MASK, state[name + MASK], state[name + ORIGINAL])
    plain: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removesuffix(ORIGINAL)
        if key != name and name in masks:
            plain[name] = _product(tensor, masks[name])
        elif key.removesuffix(MASK) not in masks or not key.endswith(MASK):
            plain[key] = tensor
    return MaskedState(plain, masks)


def to_torch_prune(model: nn.Module, masks: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> nn.Module:
    """A copy of `model` that carries the masks as `prune.custom_from_mask` leaves them; `from_torch_prune` undoes it.

    Its `state_dict()` loads into any copy of the plain model on which `prune.identity` was called for the same names.

    Args:
        model: stays as it is; its values become the originals, also where a mask is False.
        masks: parameter name -> mask of its shape, of bools or of 0 and 1; a parameter of several modules is masked
            in all of them.

    Raises:
        ValueError: an unknown parameter (nearest match named), a mask of another shape or of other values, a model
            that is pruned already.
    """
    if hooks := _pruning_hooks(model):
        path, _, hook = hooks[0]
        raise ValueError(f"{hook._tensor_name!r} of {path!r} is pruned already: use from_torch_prune(model).model")
    hooked, parameters = copy_model(model), dict(model.named_parameters(remove_duplicate=False))
    for name, mask in dict(masks).items():
        if name not in parameters:
            raise ValueError(unknown("parameter", name, parameters))
        if not isinstance(mask, Tensor):
            raise ValueError(f"mask of {name!r} must be a tensor of bools, got {type(mask).__name__}")
        if mask.shape != parameters[name].shape:
            raise ValueError(f"mask of {name!r} has shape {tuple(mask.shape)}, not {tuple(parameters[name].shape)}")
        mask = _checked_mask(f"mask of {name!r}", mask, parameters[name])
        alike = [other for other, parameter in parameters.items() if parameter is parameters[name]]
        for path, _, attribute in (other.rpartition(".") for other in alike):
            module = hooked.get_submodule(path)
            if not hasattr(module, attribute + ORIGINAL):  # one module may have several names
                torch_prune.custom_from_mask(module, attribute, mask.to(getattr(module, attribute).device))
    return hooked


def mask_granularity(mask: Tensor, inputs: Inputs = SECOND) -> str:
    """The most specific granularity a mask follows, of `RECOGNISED` the first; `fine-grained` if none of them.

    A mask can follow several: whole channels are whole kernels and vectors too, one kernel of a single row is a vector,
    every `2:4` is a `*:4` and a `*:8`. Units of one weight, weights of a single unit and patterns of a single block say
    nothing, so they are `fine-grained`; so is a mask that removes nothing. A pattern is seen wherever every block keeps
    equally many, by chance or not.

    Args:
        mask: bool, True = kept.
        inputs: the weight's, see `pruning.modules.inputs_of`; whole channels are looked for in the other dimension.

    >>> mask_granularity(torch.tensor([[True, True], [False, False]]))
    'channel'
    >>> mask_granularity(torch.tensor([[True, False, False, True], [False, True, True, False]]))
    '2:4'
    """
    if mask.all():
        return "fine-grained"
    found = (word for word in RECOGNISED if _follows(_units_first(mask, word, inputs), word, inputs))
    return next(found, "fine-grained")


def _follows(mask: Tensor, granularity: str, inputs: Inputs) -> bool:
    if obstacle_to(granularity, mask.shape, inputs) or units(mask.shape, granularity, inputs).elements == 1:
        return False
    kept = unit_scores(mask.float(), granularity, inputs)
    if pattern := pattern_of(granularity):
        by_block = kept.sum(dim=1)
        return bool((by_block == by_block[0]).all()) and pattern.keep in (None, int(by_block[0]))
    return torch.equal(expand_units(kept > 0, mask.shape, granularity), mask)


def _units_first(mask: Tensor, granularity: str, inputs: Inputs) -> Tensor:
    """The mask with its output channels in the first dimension, where they are the units."""
    return mask.movedim(1 - inputs.dim, 0) if granularity == "channel" and mask.dim() > 1 else mask


def policy_of_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> PruningPolicy:
    """The sparsity dict the masks achieve, read back from them, as a policy.

    Masks say nothing of criterion and schedule, which have the policy's defaults. A policy names prunable weights only:
    masks of biases and norms are left out. Each has the granularity of `mask_granularity`, in which `make_mask` removes
    as many units again, and by the scores a mask was chosen by the same ones. Whole output channels become granularity
    `channel`, which `prune` removes together with their bias and norm.

    Raises:
        ValueError: a name the model does not have (nearest match named), or a mask that keeps nothing.
    """
    weights, parameters = inputs_of_weights(model), dict(model.named_parameters(remove_duplicate=False))
    sparsity, granularity = {}, {}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(unknown("parameter", name, parameters))
        if name in weights:
            sparsity[name] = _checked_share(mask, f"mask of {name!r}", weights[name])
            granularity[name] = mask_granularity(mask, weights[name])
    used = {word for name, word in granularity.items() if sparsity[name] > 0}
    return PruningPolicy(sparsity, granularity if len(used) > 1 else next(iter(used), "fine-grained"))


def method_choice(
    method: torch_prune.BasePruningMethod | type[torch_prune.BasePruningMethod], weight: Tensor, **options: Any
) -> MethodChoice:
    """What a method of `torch.nn.utils.prune`, or a user's own, chooses for an unpruned weight.

    The scores stand for this choice alone: at another amount ask again. The method decides how its amount is rounded
    and how ties fall; a method that draws numbers takes them from PyTorch's global generator. It is asked about one
    weight at a time, so a threshold over several layers is `pruning.masks.global_masks`, and its earlier masks are
    not stacked: the amount is of the whole weight.

    Args:
        method: a class, made with `options`, or an instance.
        weight: any shape the method takes; stays as it is. Importance scores of one's own can be passed instead.

    Raises:
        ValueError: options for an instance; an unknown PRUNING_TYPE; a mask of another shape, with values other than
            0 and 1, or that keeps nothing; whatever the method itself refuses.

    >>> weight = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
    >>> choice = method_choice(torch_prune.L1Unstructured, weight, amount=0.25)
    >>> choice.sparsity, choice.granularity, choice.scores.tolist()
    (0.25, 'fine-grained', [[1.0, 1.0], [0.0, 1.0]])
    """
    if isinstance(method, type):
        method = method(**options)
    elif options:
        raise ValueError(f"options {', '.join(options)} belong to a class: {type(method).__name__} is made already")
    kind = getattr(method, "PRUNING_TYPE", None)
    if kind not in PRUNING_TYPES:
        raise ValueError(unknown("PRUNING_TYPE", kind, PRUNING_TYPES))
    own = weight.detach().clone()  # a method may change what it is given
    with torch.no_grad():
        chosen = method.compute_mask(own, default_mask=torch.ones_like(own))
    where = f"mask of {type(method).__name__}"
    mask = _checked_mask(where, chosen, weight)
    return MethodChoice(_checked_share(mask, where), mask_granularity(mask), mask.float())


def _pruning_hooks(model: nn.Module) -> list[tuple[str, int, torch_prune.BasePruningMethod]]:
    """Module path, key of the hook, and the hook, for every pruned tensor."""
    return [
        (path, key, hook)
        for path, module in model.named_modules()
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, torch_prune.BasePruningMethod)
    ]


def _checked_mask(name: str, mask: Tensor, masked: Tensor) -> Tensor:
    if mask.shape != masked.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, what it masks {tuple(masked.shape)}: make them equal")
    if (other := mask[(mask != 0) & (mask != 1)]).numel():
        raise ValueError(f"{name} holds {float(other[0]):g}: a mask holds only 0 and 1; make others part of the weight")
    return mask.detach().bool()


def _checked_share(mask: Tensor, where: str, inputs: Inputs = SECOND) -> float:
    """Share of units removed, in the mask's granularity; all units of a mask are of one size."""
    if not mask.any():
        raise ValueError(f"{where} keeps none of {mask.numel()} elements: keep at least one unit")
    word = mask_granularity(mask, inputs)
    count = units(_units_first(mask, word, inputs).shape, word, inputs).count
    return round(achieved_sparsity(mask) * count) / count


def _product(original: Tensor, mask: Tensor) -> Tensor:
    return original.detach().masked_fill(~mask, 0)  # a product would leave NaN and -0.0


def _put_back(module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    """Replace original, mask and product by a plain parameter, `weight` before the others as modules are built."""
    for name in (attribute, attribute + ORIGINAL, attribute + MASK):
        delattr(module, name)
    setattr(module, attribute, parameter)
    for name in [name for name in module._parameters if name != "weight"]:
        module._parameters[name] = module._parameters.pop(name)
