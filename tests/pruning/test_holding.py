"""Masks held in a loop of anybody's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pruning import held_masks
from pruning.holding import around_steps


def stepped(model, optimizer):
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_masked_weights_are_zero_from_the_beginning_and_after_every_step():
    torch.manual_seed(2)
    model, mask = nn.Linear(3, 4), torch.tensor([[True, False, True]] * 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    stepped(model, optimizer)  # from here on momentum remembers the masked weights
    with held_masks(model, {"weight": mask}):
        for _ in range(3):
            assert bool((model.weight[:, 1] == 0).all())
            stepped(model, optimizer)
    assert bool((model.weight[:, 1] == 0).all()) and bool((model.weight[:, 0] != 0).all())
    stepped(model, optimizer)
    assert bool((model.weight[:, 1] != 0).all())


def test_nothing_is_left_behind_by_a_loop_that_raises():
    with pytest.raises(KeyError), held_masks(nn.Linear(3, 4), {}):
        raise KeyError
    assert not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks
    with pytest.raises(ValueError, match="unknown parameter 'wieght'"), held_masks(nn.Linear(3, 4), {"wieght": None}):
        pass
    assert not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks


class Twice(torch.optim.SGD):
    """Takes another optimizer's step within its own."""

    def __init__(self, parameters, inner):
        super().__init__(parameters, 0.1)
        self.inner = inner

    def step(self, closure=None):
        self.inner.step()
        if not self.param_groups[0]["lr"]:
            raise RuntimeError
        return super().step(closure)


def test_a_step_within_a_step_is_one_and_other_networks_count_for_nothing():
    model, other, calls = nn.Linear(3, 4), nn.Linear(3, 4), []
    inner = torch.optim.SGD(model.parameters(), 0.1)
    outer, foreign = Twice([model.weight], inner), torch.optim.SGD(other.parameters(), 0.1)
    with around_steps(model, lambda optimizer, given: calls.append("before"), lambda _: calls.append("after")):
        stepped(model, outer)
        stepped(other, foreign)
        assert calls == ["before", "after"]
        outer.param_groups[0]["lr"] = 0.0
        with pytest.raises(RuntimeError):
            stepped(model, outer)
        outer.param_groups[0]["lr"] = 0.1
        stepped(model, outer)
    assert calls == ["before", "after", "before", "before", "after"]
