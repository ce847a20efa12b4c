"""A file within its limit, whatever it takes: the values that matter least are given up until it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.file.container import encode
from pruning.file.rounding import Rounded, round_weight

NEAR_ENOUGH = 1000
"""A file that leaves less than this part of its limit is not made larger again: each try encodes all of it."""


@dataclass(frozen=True)
class Fitted:
    """A file within its limit.

    Attributes:
        content: its bytes.
        state, rounded: what it holds.
        given_up: values that were set to zero for it.
    """

    content: bytes
    state: dict[str, Tensor]
    rounded: dict[str, Rounded]
    given_up: int


@torch.no_grad()
def encode_within(
    state: Mapping[str, Tensor],
    limit: int,
    rounded: Mapping[str, Rounded] | None = None,
    sparse: frozenset[str] | set[str] = frozenset(),
) -> Fitted:
    """The file of a state dict, with as few of its smallest values set to zero as bring it within `limit` bytes.

    Smallest are those whose square is, over all weights that may lose some, ties by order in the state dict. One
    fewer of them would not fit, or the file is within a part in `NEAR_ENOUGH` of the limit.

    Args:
        rounded: as of `encode`; these weights may lose values.
        sparse: further weights that may.

    Raises:
        ValueError: `limit` is below what the file takes without any of these values.
    """
    rounded = dict(rounded or {})
    names = [name for name in state if name in rounded or name in sparse]
    squares = torch.cat([_squares(state[name]) for name in names]) if names else torch.zeros(0)
    order = squares.argsort(stable=True)
    order = order[int((squares == 0).sum()) :]
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        alike.setdefault(_storage(tensor), []).append(name)

    def after(count: int) -> Fitted:
        gone = torch.zeros(len(squares), dtype=torch.bool)
        gone[order[:count]] = True
        own, own_rounded, parts = dict(state), dict(rounded), gone.split([state[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            if part.any():
                left = state[name].detach().cpu().masked_fill(part.view(state[name].shape), 0)
                own |= dict.fromkeys(alike[_storage(state[name])], left)
                if name in rounded:
                    own_rounded[name] = round_weight(left, rounded[name].bits, dim=rounded[name].dim)
        return Fitted(encode(own, own_rounded), own, own_rounded, count)

    short = after(0)
    if len(short.content) <= limit:
        return short
    found = after(len(order))
    if len(found.content) > limit:
        raise ValueError(
            f"a limit of {limit} bytes is below what the file takes without any weight, {len(found.content)}"
        )
    near, before = limit - limit // NEAR_ENOUGH, 2 * len(order) + 2
    while (between := found.given_up - short.given_up) > 1 and len(found.content) < near:
        # bytes fall almost evenly, so a straight line needs few encodings; where the gap stays wide, it is halved
        excess, all_of_it = len(short.content) - (near + limit) / 2, len(short.content) - len(found.content)
        step = round(between * excess / all_of_it) if 2 * between <= before else between // 2
        before = between
        middle = after(short.given_up + min(max(step, 1), between - 1))
        if len(middle.content) <= limit:
            found = middle
        else:
            short = middle
    return found


def _storage(tensor: Tensor) -> tuple[object, ...]:
    """The same of two names of one tensor."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _squares(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double().flatten().square()
