"""What a policy does to each layer: the units that stay, the sparsity achieved, and the layers nothing happens to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from spaces.cost.removal import channel_groups_of, shapes_after
from spaces.granularity import obstacle_to, units_of
from spaces.network import SECOND, Inputs, Layer, Network
from spaces.policy import PruningPolicy
from spaces.validation import check_sparsity
from spaces.wording import counted

NAMED = 3
"""Layers an error names with their reasons; of the others it gives the number."""


def removed_by_group(network: Network, requests: Mapping[str, float]) -> np.ndarray:
    """Units that each channel group of the network loses (groups,), int64.

    Args:
        requests: share of the output channels asked to go, by layer. Inside a group the smallest request holds, and an
            unnamed member asks for 0; groups with an obstacle keep all. Kept units are rounded up to the group's
            multiple.
    """
    groups = channel_groups_of(network)
    shares = np.array([check_sparsity(requests.get(name, 0.0)) for name in network.by_name])
    return groups.removed(groups.asked(shares)).astype(np.int64)


def kept_units(network: Network, requests: Mapping[str, float]) -> dict[int, int]:
    """Group number -> units kept, for the groups that lose some; see `removed_by_group`."""
    removed = removed_by_group(network, requests).tolist()
    return {n: group.units - gone for n, (group, gone) in enumerate(zip(network.groups, removed, strict=True)) if gone}


def remaining(network: Network, removal: Mapping[str, float]) -> tuple[Layer, ...]:
    """The layers in the shapes they have once these shares of output channels are gone."""
    kept = kept_units(network, removal)
    if not kept:
        return network.prunable
    shapes = shapes_after(network, kept)
    return tuple(replace(layer, shape=shapes[layer.name]) for layer in network.prunable)


def _removed_share(network: Network, kept: Mapping[int, int], layer: Layer) -> float:
    """Share of a layer's output channels that is gone where groups keep these units."""
    group = layer.channel_group
    return 1 - kept[group] / network.groups[group].units if group is not None and group in kept else 0.0


def as_removed(network: Network, policy: PruningPolicy) -> PruningPolicy:
    """The policy with its channel requests replaced by the shares removed after rounding to multiples (`round_to`).

    Applied to a network without `round_to`, it removes the same channels.
    """
    if all(group.multiple == 1 for group in network.groups):
        return policy
    requests, layers = policy.channel_requests(), network.by_name
    kept = kept_units(network, requests)
    asked = {name: _removed_share(network, kept, layers[name]) for name in requests}
    sparsity = {name: asked.get(name, own) for name, own in policy.sparsity.items() if name not in policy.removal}
    sparsity |= {name: policy.sparsity[name] for name in policy.sparsity.keys() & policy.removal.keys()}
    return replace(policy, sparsity=sparsity, removal={name: asked.get(name, 0.0) for name in policy.removal})


def masked_in(layer: Layer, granularity: str, shape: tuple[int, ...], share: float) -> int:
    """Elements of a layer of this shape a mask sets to zero."""
    return 0 if layer.whole else masked_count(granularity, shape, share, layer.inputs)


def masked_count(granularity: str, shape: tuple[int, ...], share: float, inputs: Inputs = SECOND) -> int:
    """Elements a mask sets to zero; none where the granularity cannot prune a weight of this shape."""
    if share == 0 or obstacle_to(granularity, shape, inputs):
        return 0
    units = units_of(granularity, shape, inputs)
    return units.removed(share) * units.elements


def achieved(network: Network, policy: PruningPolicy) -> dict[str, float]:
    """Layer -> share of its own units the policy really removes, after group rule and rounding."""
    kept = kept_units(network, policy.channel_requests())
    masks = policy.mask_requests()
    shapes = shapes_after(network, kept) if masks else {}
    result = {}
    for tensor in network.tensors:
        layer = network.by_name.get(tensor.name)
        if layer is None:
            continue
        granularity = policy.granularity_of(layer.name)
        if granularity == "channel":
            result[layer.name] = _removed_share(network, kept, layer)
        elif layer.name in masks:
            shape = shapes[layer.name]
            result[layer.name] = masked_in(layer, granularity, shape, masks[layer.name]) / prod(shape)
        else:
            result[layer.name] = 0.0
    return result


def fine_tune_key(network: Network, policy: PruningPolicy) -> str:
    """A key that two policies share if their fine-tunes differ at most slightly, in the schedule.

    Where weights are rounded and nothing is removed, the schedule does not count.
    """
    schedule, removed, kept = policy.schedule, achieved(network, policy), kept_units(network, policy.removal)
    granularities = [policy.granularity_of(name) for name, share in removed.items() if share]
    pace = schedule.kind if schedule.kind == "one-shot" else (schedule.kind, round(schedule.exponent, 1))
    if not policy.is_rounded:
        return repr((list(removed.values()), granularities, pace, kept))
    bits = [policy.bits_of(name) for name in removed]
    return repr((list(removed.values()), granularities, pace if granularities or kept else None, kept, bits))


class NothingToRemove(ValueError):
    """Nothing can be removed from any layer asked for; the message names the first of them with their reasons."""


def require_removal(asked: Iterable[str], unpruned: Mapping[str, str]) -> None:
    """Raise `NothingToRemove` if something is asked for, and nothing of it can be removed.

    Args:
        asked: layers with a request above 0; an empty list, the identity policy, is allowed.
        unpruned: layer -> why nothing of it goes.

    >>> require_removal(["a.weight"], {"a.weight": "0.1 of 4 units rounds to none"})
    Traceback (most recent call last):
    spaces.cost.effect.NothingToRemove: nothing to remove: 'a.weight' stays whole (0.1 of 4 units rounds to none): \
ask for a larger share, or of another layer
    """
    names = list(dict.fromkeys(asked))
    if not names or not unpruned.keys() >= set(names):
        return
    more = f"; {len(names) - NAMED} more" if len(names) > NAMED else ""
    if len(names) == 1:
        what = f"{names[0]!r} stays whole ({unpruned[names[0]]})"
    else:
        reasons = "; ".join(f"{name!r}: {unpruned[name]}" for name in names[:NAMED])
        what = f"all {len(names)} layers asked for stay whole ({reasons}{more})"
    raise NothingToRemove(f"nothing to remove: {what}: ask for a larger share, or of another layer")


def asked_layers(policy: PruningPolicy) -> list[str]:
    """The layers with a request above 0."""
    return list({**policy.channel_requests(), **policy.mask_requests()})


def unpruned_layers(network: Network, policy: PruningPolicy) -> dict[str, str]:
    """Maps each layer that is asked for something but loses nothing to the first reason why."""
    network.require(asked_layers(policy))
    requests, masks = policy.channel_requests(), policy.mask_requests()
    shapes = shapes_after(network, kept_units(network, requests))
    masked = {
        name: network.by_name[name].whole
        or mask_obstacle(policy.granularity_of(name), shapes[name], share, network.by_name[name].inputs)
        for name, share in masks.items()
    }
    skipped = skipped_layers(network, requests)
    return {
        name: reason
        for name in asked_layers(policy)
        if (name not in requests or name in skipped) and (name not in masks or masked[name])
        if (reason := skipped.get(name) or masked[name])
    }


def mask_obstacle(granularity: str, shape: Sequence[int], share: float, inputs: Inputs = SECOND) -> str | None:
    """Why a mask over this share of a weight's units sets nothing to zero; None if it sets some."""
    if why := obstacle_to(granularity, shape, inputs):
        return why
    units = units_of(granularity, shape, inputs)
    return None if units.removed(share) else rounds_to_none(share, units.count)


def rounds_to_none(share: float, units: int) -> str:
    """The reason of a request that is too small."""
    return f"{share:g} of {counted(units, 'unit')} rounds to none"


def skipped_layers(network: Network, request: Mapping[str, float]) -> dict[str, str]:
    """Layer that is asked for a share of its output channels but loses none -> why."""
    shrinking = kept_units(network, request)
    asked = [layer for layer in network.prunable if request.get(layer.name, 0.0)]
    return {x.name: _why_unpruned(network, request, x) for x in asked if x.channel_group not in shrinking}


def _why_unpruned(network: Network, request: Mapping[str, float], layer: Layer) -> str:
    if layer.obstacle or layer.channel_group is None:
        return layer.obstacle or "it is in no channel group"
    group = network.groups[layer.channel_group]
    smallest = min(group.layers, key=lambda member: request.get(member, 0.0))
    if not request.get(smallest, 0.0):
        return f"the smallest request of its group holds, and {smallest!r} asks for 0"
    reason = rounds_to_none(request[smallest], group.units)
    return reason if group.multiple == 1 else f"{reason} by multiples of {group.multiple}"
