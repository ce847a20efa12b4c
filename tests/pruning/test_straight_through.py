"""Passes that see rounded weights: gradients of the rounded network, floats before and after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning.file.rounding import round_weight
from pruning.straight_through import MOST_BITS, SCALES_STAY, straight_through


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(27, 5)
    )
    with torch.no_grad():
        model[0].weight[1, 0, 0] = 0.0
        model[4].weight[2] = 0.0
    return model


def test_a_pass_sees_the_rounded_weights_and_leaves_the_floats():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = {
        "0.weight": round_weight(model[0].weight, 3).weight(),
        "2.weight": round_weight(model[2].weight, 2, dim=1).weight(),
    }
    with straight_through({"0.weight": 3, "2.weight": 2, "4.weight": 8}).seen_by(model):
        for name, rounded in expected.items():
            assert torch.equal(model.get_parameter(name), rounded)
            assert torch.equal(model.get_parameter(name) == 0, rounded == 0)
        assert torch.equal(model[4].weight, before["4.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_are_those_of_the_rounded_network_and_reach_the_same_parameters():
    model, inputs = net().eval(), torch.randn(6, 1, 4, 4)
    parameters = list(model.parameters())
    with straight_through(2).seen_by(model):
        (model(inputs) ** 2).mean().backward()
    found = [parameter.grad.clone() for parameter in parameters]
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    apart = net().eval()
    with torch.no_grad():
        for number, dim in ((0, 0), (2, 1), (4, 0)):
            apart[number].weight.copy_(round_weight(apart[number].weight, 2, dim=dim).weight())
    (apart(inputs) ** 2).mean().backward()
    for gradient, parameter in zip(found, apart.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_floats_are_back_after_an_error():
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(KeyboardInterrupt), straight_through(2).seen_by(model):
        raise KeyboardInterrupt
    assert torch.equal(model[0].weight, before)


def test_scales_follow_the_weights_after_some_passes_and_a_new_model_at_once():
    model, seen = net(), straight_through(2)
    with seen.seen_by(model):
        pass
    with torch.no_grad():
        model[0].weight *= 8

    def largest(of: nn.Module) -> float:
        with seen.seen_by(of):
            return float(of[0].weight.detach().abs().max())

    old = [largest(model) for _ in range(SCALES_STAY - 1)]
    assert len(set(old)) == 1 and largest(model) == pytest.approx(8 * old[0])
    smaller = nn.Sequential(nn.Conv2d(1, 2, 3))
    assert largest(smaller) == float(round_weight(smaller[0].weight, 2).weight().abs().max())


@pytest.mark.parametrize("bits", [32, MOST_BITS + 1, {"0.weight": 8}, {}])
def test_more_bits_need_not_be_seen(bits):
    assert straight_through(bits) is None
