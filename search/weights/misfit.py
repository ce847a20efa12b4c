"""In which names and shapes a state dict is not that of a network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from torch import Tensor

from search.networks.nearest import nearest_network
from search.weights.unwrap import COUNTER
from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import unknown

SHOWN = 2
"""How many names of a kind are shown."""


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What does not fit, as the end of a sentence that begins with the file; empty if all does.

    Args:
        state: what the file holds, by the network's names where they are alike.
        expected: the network's tensors; of these, BatchNorm's counters may be lacking.
    """
    more = [name for name in state if name not in expected]
    lacking = [name for name in expected if name not in state and not name.endswith(COUNTER)]
    shapes = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if len(more) + len(lacking) + len(shapes) <= 1:
        return _single(more, lacking, shapes, state, expected)
    parts = []
    if more:
        near = difflib.get_close_matches(more[0][:LONGEST_WORD], lacking, 1, cutoff=0.0)
        asked = f"; did you mean {near[0]!r}?" if near else ""
        parts.append(f"{len(more)} of the file's {len(state)} tensors {_are(more)} unknown ({_listed(more)}{asked})")
    if lacking:
        parts.append(f"{len(lacking)} of the network's {len(expected)} {_are(lacking)} lacking ({_listed(lacking)})")
    if shapes:
        named = ", ".join(_shape(name, state, expected) for name in shapes[:SHOWN])
        parts.append(f"{len(shapes)} of another shape ({named}{', ...' if len(shapes) > SHOWN else ''})")
    is_another = more or lacking or 2 * len(shapes) > len(expected)
    return f" do not fit: {', '.join(parts)}{_whose(state) if is_another else ''}"


def _whose(state: Mapping[str, Tensor]) -> str:
    found = nearest_network(state)
    return f"; they are those of {found}" if found else ""


def _single(
    more: Sequence[str],
    lacking: Sequence[str],
    shapes: Sequence[str],
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> str:
    if more:
        return f": {unknown('tensor', more[0], expected)}"
    if lacking:
        return f" lack the tensor {lacking[0]!r} of shape {tuple(expected[lacking[0]].shape)}"
    return f": tensor {_shape(shapes[0], state, expected)}" if shapes else ""


def _shape(name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{name!r} has shape {tuple(state[name].shape)}, the model needs {tuple(expected[name].shape)}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    shown = [repr(shortened(name, LONGEST_WORD)) for name in names[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(names) > SHOWN else "")
