"""Masks that hold in a training loop of anybody's, by hooks on the optimizers' steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pruning.masks import apply_masks_

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of an optimizer's `step`, the optimizer itself first."""
Before = Callable[[Optimizer, Given], Given | None]
"""Called before a step with its arguments; may return others."""
After = Callable[[Optimizer], None]
"""Called after a step."""


@contextmanager
def held_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Masked weights are zero within this context: when it begins, and after every step of an optimizer that moves one.

    Any loop may run inside: with momentum, weight decay, accumulated gradients, autocast and a `GradScaler`, closures
    or several optimizers. Not seen are optimizers that do not derive from `torch.optim.Optimizer`; and what the loop
    loads into the model stays as it is until the next step.

    Args:
        model: the one that is trained; its parameters stay the same objects.
        masks: parameter name -> bool mask of its shape, True = kept.

    Raises:
        ValueError: from `apply_masks_`.
    """
    apply_masks_(model, masks)
    with around_steps(model, after=lambda _: apply_masks_(model, masks)):
        yield


@contextmanager
def around_steps(model: nn.Module, before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Within this context, call functions around each step of every optimizer that holds a parameter of the model.

    A step that another one takes within itself is a part of that: nothing is called for it. PyTorch's hooks are those
    of the process; none is left behind.
    """

    def moves_it(optimizer: Optimizer) -> bool:
        own = {id(parameter) for parameter in model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def is_inner(step: FrameType) -> bool:
        """Whether the call of a step comes out of another one's."""
        above = step.f_back
        while above is not None:
            if above.f_code is step.f_code and moves_it(above.f_locals["args"][0]):
                return True
            above = above.f_back
        return False

    def begin(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given | None:
        if before is None or not moves_it(optimizer) or is_inner(sys._getframe(1)):
            return None
        return before(optimizer, (args, kwargs))

    def end(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if after is not None and moves_it(optimizer) and not is_inner(sys._getframe(1)):
            after(optimizer)

    hooks = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
