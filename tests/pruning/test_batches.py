"""How many examples go through a network at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pruning import batches
from pruning.batches import examples_at_once
from search.training.scoring import predict


@pytest.fixture
def budget(monkeypatch):
    return lambda size: monkeypatch.setattr(batches, "BATCH_BYTES", size)


def convolution() -> nn.Module:
    """Of an example of 8 x 8 single channels it makes 16 channels: 4,096 bytes."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("size", "expected"), [(7 * 4096 + 100, 7), (4096, 1), (5, 1), (1000 * 4096, 1000), (2**40, 1000)]
)
def test_the_largest_tensor_of_a_batch_is_within_the_budget(budget, size, expected):
    budget(size)
    assert examples_at_once(convolution(), torch.randn(9, 1, 8, 8)) == expected


def test_never_more_than_asked_for(budget):
    budget(600 * 4096)
    assert examples_at_once(convolution(), torch.randn(9, 1, 8, 8), most=500) == 500
    assert examples_at_once(convolution(), torch.randn(9, 1, 8, 8), most=800) == 600


def test_the_input_counts_too(budget):
    budget(3 * 4000)
    assert examples_at_once(nn.Linear(1000, 2), torch.randn(9, 1000)) == 3


@pytest.mark.parametrize(
    "model", [nn.Linear(10, 2000), weight_norm(nn.Linear(10, 2000))], ids=["weight", "weight that is computed"]
)
def test_weights_are_no_part_of_an_example(budget, model):
    """They are the same for any number of examples, and here larger."""
    budget(6 * 8000)
    assert examples_at_once(model, torch.randn(9, 10)) == 6


def test_tensors_that_no_module_returns_count(budget):
    """Attention of two heads over 32 words makes 2 x 32 x 32 floats of an example's 32 x 8."""

    class Attention(nn.Module):
        def forward(self, x):
            heads = x.unflatten(2, (2, 4)).transpose(1, 2)
            return (heads @ heads.transpose(2, 3)).softmax(3) @ heads

    budget(5 * 2 * 32 * 32 * 4)
    assert examples_at_once(Attention(), torch.randn(9, 32, 8)) == 5


def test_steps_that_depend_on_the_number(budget):
    class Uneven(nn.Module):
        def forward(self, x):
            return torch.cat([part.repeat(1, 3) for part in x.split(1)])

    budget(10 * 4 * 30)
    assert examples_at_once(Uneven(), torch.randn(9, 10)) in (9, 10)


def test_neither_expanded_tensors_nor_numbers_take_memory(budget):
    class Odd(nn.Module):
        def forward(self, x):
            wide = x[:, None].expand(len(x), 50, x.shape[1])
            return (wide.mean(1) * x.abs().max().item()).repeat(1, 3)

    budget(7 * 120)
    assert examples_at_once(Odd(), torch.randn(9, 10)) == 7


def test_a_model_that_fails_is_left_to_fail_in_earnest(budget):
    class Picky(nn.Module):
        def forward(self, x):
            if len(x) < 5:
                raise RuntimeError("five at least")
            return x * 2

    budget(6 * 40)
    assert examples_at_once(Picky(), torch.randn(12, 10)) == 6


def test_nothing_is_left_behind():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6)).train()
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    examples_at_once(model, torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 3 * 4096, 2**30])
def test_outputs_do_not_depend_on_the_number(budget, size):
    torch.manual_seed(0)
    model, inputs = convolution(), torch.randn(25, 1, 8, 8)
    with torch.no_grad():
        expected = model(inputs)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    budget(size)
    assert torch.allclose(predict(model, inputs), expected, atol=1e-6)
    assert max(seen[2:]) == max(1, min(25, size // 4096)) and sum(seen[2:]) == 25
