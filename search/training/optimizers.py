"""The recipe's optimizer, which keeps no memory of masked weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from search.workloads.recipe import Recipe

EPSILON = 1e-8
"""Of AdamW, PyTorch's own."""
_FRESH = {"decay": 1.0, "square_decay": 1.0}
"""State that does not begin at 0."""


def make_optimizer(model: nn.Module, recipe: Recipe, regrow: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters, at learning rate 0 until one is set.

    Args:
        regrow: masked weights may return. `forget_masked_` then clears their state, so that a returning weight goes on
            exactly as under a new optimizer.

    On CUDA it is PyTorch's step in one kernel, which with a `GradScaler` waits for nothing.
    """
    momentum, betas, decay = recipe.momentum, recipe.betas, recipe.weight_decay
    fused = True if all(parameter.is_cuda for parameter in model.parameters()) else None
    if betas is None:
        assert momentum is not None  # a recipe has one of them
        return torch.optim.SGD(
            model.parameters(), 0.0, momentum, weight_decay=decay, nesterov=momentum > 0, fused=fused
        )
    if regrow:
        return ElementwiseAdamW(model.parameters(), lr=0.0, betas=betas, eps=EPSILON, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), 0.0, betas, EPSILON, decay, fused=fused)


def forget_masked_(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Reset the state of masked weights to that of a new optimizer, so that remembered gradients no longer move them.

    Args:
        masks: parameter name -> bool mask of its shape, True = kept.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        for key, tensor in optimizer.state.get(parameters[name], {}).items():
            if isinstance(tensor, Tensor) and tensor.shape == mask.shape:
                tensor.masked_fill_(~mask.to(tensor.device), _FRESH.get(key, 0.0))


class ElementwiseAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) that counts the steps of every element separately.

    PyTorch counts steps by tensor. An element whose running means start at 0 later than the others' would take steps up
    to (1 - beta1) / sqrt(1 - beta2) times too long, 3.2 by default, because the correction for that start has already
    faded. Here each element's state holds both means and the remaining weights of their starts, beta1^t and beta2^t.
    """

    def __init__(
        self, parameters: Any, lr: float, betas: tuple[float, float], eps: float = EPSILON, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradients; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient, (beta, square_beta) = self.state[parameter], parameter.grad, group["betas"]
        if not state:
            state |= {key: torch.zeros_like(parameter) for key in ("mean", "square")}
            state |= {key: torch.full_like(parameter, start) for key, start in _FRESH.items()}
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mean = state["mean"].lerp_(gradient, 1 - beta)
        square = state["square"].mul_(square_beta).addcmul_(gradient, gradient, value=1 - square_beta)
        decay, square_decay = state["decay"].mul_(beta), state["square_decay"].mul_(square_beta)
        size = (square / (1 - square_decay)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean / (1 - decay), size, value=-group["lr"])
