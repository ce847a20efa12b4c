"""Layers that stay whole although something is asked of them, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spaces.granularity import obstacle_to, units_of
from spaces.network import SECOND, Inputs, Layer, Network
from spaces.policy import PruningPolicy
from spaces.size import kept_units

NAMED = 3
"""Layers an error names with their reasons; of the others it gives the number."""


class NothingToRemove(ValueError):
    """Every layer asked for stays whole; the message names the first with their reasons."""


def require_removal(asked: Iterable[str], whole: Mapping[str, str]) -> None:
    """Raise `NothingToRemove` if something is asked for, and all of it stays whole.

    Args:
        asked: layers asked for more than nothing; none of them is the identity, and allowed.
        whole: layer -> why nothing of it goes.

    >>> require_removal(["a.weight"], {"a.weight": "0.1 of 4 units rounds to none"})
    Traceback (most recent call last):
    spaces.whole.NothingToRemove: nothing to remove: 'a.weight' stays whole (0.1 of 4 units rounds to none): \
ask for a larger share, or of another layer
    """
    names = list(dict.fromkeys(asked))
    if not names or not whole.keys() >= set(names):
        return
    more = f"; {len(names) - NAMED} more" if len(names) > NAMED else ""
    if len(names) == 1:
        what = f"{names[0]!r} stays whole ({whole[names[0]]})"
    else:
        reasons = "; ".join(f"{name!r}: {whole[name]}" for name in names[:NAMED])
        what = f"all {len(names)} layers asked for stay whole ({reasons}{more})"
    raise NothingToRemove(f"nothing to remove: {what}: ask for a larger share, or of another layer")


def asked_layers(policy: PruningPolicy) -> list[str]:
    """Layers the policy asks more than nothing of."""
    return list({**policy.channel_requests(), **policy.mask_requests()})


def whole_layers(network: Network, policy: PruningPolicy) -> dict[str, str]:
    """Layer the policy asks something of, but that keeps every channel and every weight -> the first reason.

    Raises:
        ValueError: the policy asks something of a layer the network does not have (nearest match named).
    """
    network.require(asked_layers(policy))
    requests, masks = policy.channel_requests(), policy.mask_requests()
    kept = kept_units(network, requests)
    units = {number: group.units for number, group in enumerate(network.groups)}
    shapes = {tensor.name: tensor.shrunk(kept, units) for tensor in network.tensors if tensor.name in masks}
    masked = {
        name: network.by_name[name].whole
        or mask_obstacle(policy.granularity_of(name), shapes[name], share, network.by_name[name].inputs)
        for name, share in masks.items()
    }
    skipped = skipped_layers(network, requests)
    return {
        name: skipped.get(name) or masked[name]
        for name in asked_layers(policy)
        if (name not in requests or name in skipped) and (name not in masks or masked[name])
    }


def mask_obstacle(granularity: str, shape: Sequence[int], share: float, inputs: Inputs = SECOND) -> str | None:
    """Why a mask over this share of a weight's units sets nothing to zero; None if it sets some."""
    if why := obstacle_to(granularity, shape, inputs):
        return why
    units = units_of(granularity, shape, inputs)
    return None if units.removed(share) else rounds_to_none(share, units.count)


def rounds_to_none(share: float, units: int) -> str:
    """The reason of a request that is too small."""
    return f"{share:g} of {units} units rounds to none"


def skipped_layers(network: Network, request: Mapping[str, float]) -> dict[str, str]:
    """Layer that is asked for a share of its output channels but loses none -> why."""
    shrinking = kept_units(network, request)
    asked = [layer for layer in network.prunable if request.get(layer.name, 0.0)]
    return {x.name: _why_whole(network, request, x) for x in asked if x.channel_group not in shrinking}


def _why_whole(network: Network, request: Mapping[str, float], layer: Layer) -> str:
    if layer.obstacle:
        return layer.obstacle
    group = network.groups[layer.channel_group]
    smallest = min(group.layers, key=lambda member: request.get(member, 0.0))
    if not request.get(smallest, 0.0):
        return f"the smallest request of its group holds, and {smallest!r} asks for 0"
    reason = rounds_to_none(request[smallest], group.units)
    return reason if group.multiple == 1 else f"{reason} by multiples of {group.multiple}"
