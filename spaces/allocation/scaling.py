"""One policy at other sparsities: its layers keep their order, all else stays."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from spaces.allocation.budget import LOGIT_REACH, least_fitting, shifted
from spaces.network import Network
from spaces.policy import PruningPolicy
from spaces.validation import check_sparsity

HALVINGS = 80
"""Of the interval the shift lies in: more than a float tells apart."""
DECIMALS = 12
"""Of the sparsities, so that a uniform policy is scaled to the share itself, not to a neighbour of it."""


def mean_sparsity(network: Network, policy: PruningPolicy) -> float:
    """Share of the weights asked to go, of those layers the policy asks something of; 0.0 if it asks nothing.

    Of a layer with a removal as well it is 1 - (1 - removal)(1 - sparsity). What groups, rounding and lost inputs make
    of the requests plays no part.

    Raises:
        ValueError: the policy names a layer the network does not have (nearest match named).
    """
    network.require((*policy.sparsity, *policy.removal))
    asked = {
        name: 1 - prod(1 - part.get(name, 0.0) for part in (policy.sparsity, policy.removal))
        for name in (*policy.sparsity, *policy.removal)
    }
    sizes = {name: network.by_name[name].numel for name, share in asked.items() if share > 0}
    return sum(asked[name] * size for name, size in sizes.items()) / max(sum(sizes.values()), 1)


def scaled(network: Network, policy: PruningPolicy, sparsity: float) -> PruningPolicy:
    """The policy with one shift on the logits of all its shares, such that its `mean_sparsity` is this.

    Raises:
        ValueError: a sparsity outside (0, 1) or out of a shift's reach, or a policy that asks for nothing.
    """
    if not check_sparsity(sparsity) > 0:
        raise ValueError(f"sparsity to scale a policy to must satisfy 0 < sparsity < 1, got {sparsity!r}")
    if mean_sparsity(network, policy) == 0:
        raise ValueError("the policy removes nothing, so it cannot be scaled: give a layer a sparsity above 0")

    def reaches(shift: float) -> bool:
        return mean_sparsity(network, _moved(policy, shift)) >= sparsity

    found = _moved(policy, least_fitting(reaches, -2 * LOGIT_REACH, 2 * LOGIT_REACH, HALVINGS))
    if abs((reached := mean_sparsity(network, found)) - sparsity) > 1e-6:
        raise ValueError(f"the policy cannot be scaled to sparsity {sparsity!r}: nearest valid: {reached:.6g}")
    return found


def _moved(policy: PruningPolicy, shift: float) -> PruningPolicy:
    least = 10.0**-DECIMALS  # so that no layer drops out
    sparsity, removal = (
        {name: max(round(share, DECIMALS), least) if share > 0 else 0.0 for name, share in shifted(part, shift).items()}
        for part in (policy.sparsity, policy.removal)
    )
    return replace(policy, sparsity=sparsity, removal=removal)
