"""Finding the state dict in a checkpoint: nested beside other things, and with prefixed names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEEPEST = 4
"""How many levels of nested mappings are looked into."""
COUNTER = "num_batches_tracked"
"""A tensor of BatchNorm that weights may lack: nothing is computed from it unless momentum is None."""
COMPILED = "_orig_mod"
"""The part of a name that `torch.compile` inserts."""
SHOWN = 3


class Ambiguous(ValueError):
    """A file holds several state dicts that fit."""


@dataclass(frozen=True)
class Unwrapped:
    """A state dict under the model's own names.

    Attributes:
        fits: whether it has everything the model needs, in the right shapes, and nothing else.
        matched: how many tensors of the model it has in the right shape.
        entry: the dotted place in the file it was at, with what its names began with; empty for the file itself.
        said: where in the file it was and what its names began with; empty if it needed no unwrapping.
    """

    state: Mapping[str, Tensor]
    fits: bool
    matched: int
    entry: str
    said: str


def unwrap(content: Mapping[Any, Any], expected: Mapping[str, Tensor], in_part: bool = False) -> Unwrapped:
    """The state dict in a checkpoint that fits best, without the prefix that all of its names share and the model's
    lack.

    Args:
        content: what the file holds; entries that are not tensors, and what lies beside the state dict, are left out.
        expected: the model's tensors.
        in_part: whether one that does not fit is to be used as far as it does.

    Raises:
        Ambiguous: several fit, or are to be used and fit as far, and their numbers differ.
    """
    found = [form for path, state in _states(content, (), DEEPEST) for form in _forms(path, state, expected)]
    if fitting := [form for form in found if form.fits]:
        return _the_only(fitting, expected)
    best = max(found, key=lambda form: form.matched, default=Unwrapped({}, False, 0, "", ""))
    if not in_part or 2 * best.matched < len(expected):
        return best
    return _the_only([form for form in found if form.matched == best.matched], expected)


def _the_only(forms: list[Unwrapped], expected: Mapping[str, Tensor]) -> Unwrapped:
    """The first, if what is taken of the others has the same numbers."""
    first = forms[0]
    taken = [name for name in expected if name in first.state and first.state[name].shape == expected[name].shape]
    for other in forms[1:]:
        if not all(name in other.state and torch.equal(first.state[name], other.state[name]) for name in taken):
            places = " and ".join(repr(form.said or "its own names") for form in (first, other))
            remedy = f"name one, as in FILE#{other.entry}" if other.entry else "save the right one by itself"
            raise Ambiguous(f"hold several state dicts that fit, {places}: {remedy}")
    return first


def _states(content: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping from names to tensors in a checkpoint, with its place."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield ".".join(path), tensors
    if depth:
        for key, value in content.items():
            yield from _states(value, (*path, str(key)), depth - 1)


def _forms(path: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Unwrapped]:
    """The state dict under every change of prefix that turns one of its names into one of the model's."""
    plain = {_plain(name): tensor for name, tensor in state.items()}
    own = {_plain(name): name for name in expected}
    begins = {("", "")}
    for wanted in list(own)[:SHOWN]:
        begins |= {pair for name in plain if (pair := _begins(name, wanted)) is not None}
    for had, given in sorted(begins, key=lambda pair: (len(pair[0]) + len(pair[1]), pair)):
        renamed = {given + name.removeprefix(had): tensor for name, tensor in plain.items() if name.startswith(had)}
        mapped = {own.get(name, name): tensor for name, tensor in renamed.items()}
        lacking = [name for name in expected if name not in mapped and not name.endswith(COUNTER)]
        matched = sum(name in mapped and mapped[name].shape == tensor.shape for name, tensor in expected.items())
        fits = not lacking and mapped.keys() <= expected.keys() and matched == len(mapped)
        place = ".".join(part for part in (path, had.rstrip(".")) if part)
        yield Unwrapped(mapped, fits, matched, place, _said(path, had, given, plain.keys() != state.keys()))


def _said(path: str, had: str, given: str, compiled: bool) -> str:
    parts = [f"entry {path!r}"] if path else []
    parts += [f"names without {had!r}"] if had else []
    parts += [f"names with {given!r} before them"] if given else []
    parts += [f"names without {COMPILED!r}"] if compiled else []
    return ", ".join(parts)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _begins(name: str, wanted: str) -> tuple[str, str] | None:
    """The parts before the longest common ending of two dotted names; None if not even the last part is common."""
    one, other = name.split("."), wanted.split(".")
    common = 0
    while common < min(len(one), len(other)) and one[-1 - common] == other[-1 - common]:
        common += 1
    if not common:
        return None
    had, given = ("".join(f"{part}." for part in parts[: len(parts) - common]) for parts in (one, other))
    return had, given
