"""The criteria of the user's own, by name; the built-in ones are named in `spaces.criteria`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

from torch import Tensor, nn

from pruning.calibration import Calibration
from spaces.criteria import add_criterion_word, criterion_word
from spaces.granularity import GRANULARITIES
from spaces.validation import unknown

OfWeight = Callable[[Tensor], Tensor]
"""weight -> scores of its shape."""
OfModel = Callable[[nn.Module, Calibration], Mapping[str, Tensor]]
"""(model in eval mode, calibration) -> layer -> scores of its weight's shape."""
_own: dict[str, Callable[..., Any]] = {}


@overload
def register_criterion(
    name: str,
    function: OfWeight,
    granularities: Iterable[str] | None = None,
    needs_data: Literal[False] = False,
) -> None: ...
@overload
def register_criterion(
    name: str, function: OfModel, granularities: Iterable[str] | None = None, *, needs_data: Literal[True]
) -> None: ...
@overload
def register_criterion(
    name: str, function: Callable[..., Any], granularities: Iterable[str] | None, needs_data: bool
) -> None: ...
def register_criterion(
    name: str, function: Callable[..., Any], granularities: Iterable[str] | None = None, needs_data: bool = False
) -> None:
    """Make a criterion of one's own usable wherever a criterion is named; again replaces it.

    A unit scores the sum of its elements' scores, in a channel group over all its channels; larger is kept, and weights
    that are zero count nothing.

    Args:
        name: no built-in word. With a `:` in it, as in `lab:spread`, files that hold it can be read where it is
            not registered.
        function: `weight -> scores`, both of the weight's shape, scores finite and >= 0; or, with `needs_data`,
            `(model, calibration) -> {layer: scores}` for every prunable layer, from a model in eval mode that it
            may change and a `pruning.Calibration`. The same input must give the same scores.
        granularities: the only ones it is defined for; None means all.
        needs_data: whether the function takes a model and calibration data.

    Raises:
        ValueError: a built-in or empty name, an unknown granularity, or something that cannot be called.

    >>> import torch
    >>> from pruning.importance.weights import element_scores
    >>> register_criterion("doc:spread", lambda weight: (weight - weight.mean()).abs())
    >>> element_scores(torch.tensor([1.0, 2.0, 6.0]), "doc:spread").tolist()
    [2.0, 1.0, 3.0]
    """
    if not callable(function):
        raise ValueError(f"criterion {name!r} needs a function, got {function!r}")
    words = None if granularities is None else tuple(granularities)
    for word in words or ():
        if word not in GRANULARITIES:
            raise ValueError(unknown("granularity", word, GRANULARITIES))
    add_criterion_word(name, words, needs_data)
    _own[name] = function


def own_function(criterion: str) -> Callable[..., Any] | None:
    """The function registered under this name, an `OfModel` where the criterion needs data, else an `OfWeight`.

    None for built-in words. What it gives is a stranger's: it is checked where it is used.

    Raises:
        ValueError: a criterion of somebody's own that is not registered in this process.
    """
    criterion_word(criterion)
    if ":" in criterion and criterion not in _own:
        raise ValueError(
            f"criterion {criterion!r} is not registered here: name its function with --criterion ./file.py:function, "
            "or call pruning.register_criterion"
        )
    return _own.get(criterion)
