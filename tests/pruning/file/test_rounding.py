"""Rounded weights, folded norms, and networks in the form their file stores."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.file.precision import rounded_floats
from pruning.file.rounding import round_weight
from pruning.file.stored_form import fold_norms_, foldable, to_stored_form_
from pruning.modules import prunable_weights


def grid_below(largest: float, mantissa: int) -> list[float]:
    """Floats of so many bits behind the leading one, the first at least `largest`, then 20 smaller ones."""
    values = sorted({(1 + n / 2**mantissa) * 2.0**e for n in range(2**mantissa) for e in range(-40, 20)}, reverse=True)
    first = max(place for place, value in enumerate(values) if value >= largest)
    return values[first : first + 21]


class TestRounding:
    @settings(deadline=None, max_examples=40, derandomize=True)
    @given(
        bits=st.sampled_from([2, 3, 4, 7, 8, 16]),
        shape=st.sampled_from([(4, 3, 3, 3), (6, 9), (5,), (3, 1, 2)]),
        dim=st.integers(0, 1),
        seed=st.integers(0, 999),
        kept=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def test_the_best_scale_of_all_candidates_by_plain_arithmetic(self, bits, shape, dim, seed, kept):
        generator = np.random.default_rng(seed)
        dim = min(dim, len(shape) - 1)
        weight = generator.standard_t(3, shape).astype(np.float32)
        mask = generator.random(shape) < kept
        found = round_weight(torch.from_numpy(weight), bits, torch.from_numpy(mask), dim)
        largest = 2 ** (bits - 1) - 1
        assert int(found.integers.abs().max()) <= largest
        assert found.integers.dtype == (torch.int8 if bits <= 8 else torch.int16)
        assert not found.integers.numpy()[~mask].any()
        product = found.weight().numpy()
        for channel in range(shape[dim]):
            own = np.take(weight * mask, channel, dim).astype(float).ravel()
            error = ((np.take(product, channel, dim).ravel() - own) ** 2).sum()
            if not own.any():
                assert float(found.scales[channel]) == error == 0
                continue
            best = min(
                ((np.clip(np.round(own / s), -largest, largest) * s - own) ** 2).sum()
                for s in grid_below(np.abs(own).max() / largest, 3)
            )
            assert error <= best * (1 + 1e-5) + 1e-12

    @settings(deadline=None, max_examples=150, derandomize=True)
    @example(  # the largest scale is the first of the octave above peak / largest
        bits=16, shape=(4, 3, 3, 3), dim=0, seed=4096, kept=0.1, scale=1e-6, spread=12.0, alike=True,
        dtype=torch.float32,
    )  # fmt: skip
    @given(
        bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]),
        shape=st.sampled_from([(4, 3, 3, 3), (6, 9), (5,), (3, 1, 2), (0, 4), (3, 0), (9, 40)]),
        dim=st.integers(0, 1),
        seed=st.integers(0, 9999),
        kept=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        scale=st.sampled_from([1e-44, 1e-30, 1e-6, 1.0, 1e20, 3e37]),
        spread=st.sampled_from([0.0, 1.0, 12.0]),
        alike=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    )
    def test_what_is_rounded_stays_what_it_is(self, bits, shape, dim, seed, kept, scale, spread, alike, dtype):
        generator = np.random.default_rng(seed)
        dim = min(dim, len(shape) - 1)
        weight = np.ones(shape) if alike else generator.standard_t(3, shape).clip(-9, 9)
        octaves = np.exp(spread * generator.standard_normal(shape[dim]))
        weight = weight * octaves.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        weight = torch.from_numpy(weight * scale * (generator.random(shape) < kept))
        given = weight.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
        first = round_weight(given, bits, dim=dim)
        assert torch.isfinite(first.weight(dtype)).all()
        assert not first.weight(dtype)[given == 0].any()
        exponents = torch.frexp(first.scales[first.scales > 0].float())[1]
        assert not len(exponents) or int(exponents.max() - exponents.min()) < 16
        by_channel = (first.integers != 0).movedim(dim, 0).reshape(shape[dim], math.prod(shape) // max(shape[dim], 1))
        assert torch.equal(first.scales > 0, by_channel.any(dim=1))
        second = round_weight(first.weight(dtype), bits, dim=dim)
        assert torch.equal(second.weight(dtype), first.weight(dtype))
        assert torch.equal(second.integers, first.integers) and torch.equal(second.scales, first.scales)
        some = first.weight(dtype) * torch.from_numpy(generator.random(shape) < 0.5)
        third = round_weight(some, bits, dim=dim)  # values are given up by zeroing
        assert torch.equal(third.weight(dtype), some)

    @pytest.mark.parametrize("integers", [[6, 4, -2], [0, 6, 0], [2, 2, 2], [4, 0, 4], [7, 1, 0], [1, 0, 0]])
    def test_the_finest_scale_of_those_that_change_nothing(self, integers):
        one = round_weight(torch.tensor([integers]).float() * 1.375, 4)
        assert one.weight().tolist() == [[1.375 * own for own in integers]]
        finer = [s for s in grid_below(16, 3) if s < float(one.scales[0])]
        whole = [torch.tensor(integers) * 1.375 / s for s in finer]
        assert not any(torch.equal(w, w.round()) and float(w.abs().max()) <= 7 for w in whole)

    def test_the_inverse_is_exactly_what_a_network_computes_with(self):
        weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0))
        one = round_weight(weight, 5)
        by_hand = np.float32(one.integers.numpy()) * one.scales.float().numpy()[:, None, None, None]
        assert np.array_equal(one.weight().numpy(), by_hand)
        assert one.scales.dtype == torch.bfloat16

    @pytest.mark.parametrize(("bits", "nearest"), [(1, 2), (17, 16), (33, 16), (3.5, 4), ("8" * 300, 16), (True, 16)])
    def test_impossible_bits(self, bits, nearest):
        said = (
            rf"^bits of a rounded weight must be a whole number from 2 to 16, got .{{1,210}}; nearest valid: {nearest}"
        )
        with pytest.raises(ValueError, match=f"{said};"):
            round_weight(torch.ones(2, 2), bits)

    def test_bits_of_another_library_are_bits(self):
        assert type(round_weight(torch.ones(2, 2), np.int64(5)).bits) is int

    def test_what_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="cannot be rounded"):
            round_weight(torch.tensor([[1.0, float("nan")]]), 4)

    def test_more_bits_are_never_worse(self):
        weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
        errors = [float(((round_weight(weight, bits).weight() - weight) ** 2).sum()) for bits in range(2, 11)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-4 * errors[0]

    def test_scales_far_below_the_largest_are_raised(self):
        weight = torch.tensor([[3.0, 1.0], [1e-9, 1e-9]])
        one = round_weight(weight, 4)
        assert one.integers[1].tolist() == [0, 0]
        assert one.scales[1] == 0


class TestPrecision:
    @settings(deadline=None, derandomize=True, max_examples=50)
    @given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), max_size=20), st.integers(0, 10))
    def test_relative_error_and_bits(self, values, mantissa):
        given = torch.tensor(values, dtype=torch.float32)
        found = rounded_floats(given, mantissa)
        assert ((found - given).abs() <= given.abs() * 2.0 ** -(mantissa + 1) * (1 + 1e-6) + 1e-44).all()
        big = found[found.abs() > 1e-30]
        assert not (big.view(torch.int32) & (1 << (23 - mantissa)) - 1).any()


class SomeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3)
        self.up, self.own = nn.ConvTranspose2d(8, 4, 2, groups=2), nn.GroupNorm(2, 4)
        self.depthwise, self.bare = nn.Conv2d(4, 4, 2, groups=4), nn.BatchNorm2d(4, affine=False)
        self.head, self.words = nn.Linear(4, 5), nn.Embedding(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.own(self.up(torch.relu(self.norm(self.conv(x)))))
        return self.head(self.bare(self.depthwise(x)).mean(dim=(2, 3)) + self.words(torch.arange(len(x))))


def trained() -> SomeNet:
    torch.manual_seed(2)
    net = SomeNet()
    for _ in range(5):
        net(torch.randn(6, 3, 9, 9) * 2 + 1)
    nn.init.normal_(net.norm.weight)
    nn.init.normal_(net.norm.bias)
    return net.eval()


class Wider(nn.BatchNorm1d):
    """Adds its epsilon to the deviation, not to the variance."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(x)
        return (x - self.running_mean) / (self.running_var.sqrt() + 0.25) * self.weight + self.bias


class TestStoredForm:
    def test_folding_alone_changes_rounding_alone(self):
        net, x = trained(), torch.randn(6, 3, 9, 9)
        before = net(x)
        assert list(foldable(net)) == ["norm"]
        assert fold_norms_(net, 23, 8) == 1
        assert torch.allclose(net(x), before, rtol=1e-4, atol=1e-5)
        assert not net.norm.running_mean.any()
        assert (net.norm.running_var == 1).all()

    @pytest.mark.parametrize("case", ["weight", "statistics", "bias of a layer", "storage", "computed", "own forward"])
    def test_norms_whose_tensors_say_something_else_stay_as_they_are(self, case):
        first, other, layer = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        if case == "weight":
            other.weight = first.weight
        elif case == "statistics":
            other.running_mean, other.running_var = first.running_mean, first.running_var
        elif case == "bias of a layer":
            layer.bias, other = first.bias, nn.Identity()
        elif case == "storage":
            other.bias.data = first.bias.data
        elif case == "computed":
            nn.utils.parametrize.register_parametrization(first, "weight", nn.Softplus())
            other = nn.Identity()
        else:
            first, other = Wider(4), nn.Identity()
        torch.manual_seed(3)
        net, x = nn.Sequential(first, nn.ReLU(), layer, other).train(), torch.randn(9, 4)
        for _ in range(4):
            net(x * torch.tensor([1.0, 2.0, 3.0, 9.0]) + 1)
        before = net.eval()(x)
        assert fold_norms_(net, 23, 8) == 0
        assert torch.equal(net(x), before)

    def test_a_norm_under_two_names_is_folded_once(self):
        torch.manual_seed(4)
        norm, x = nn.BatchNorm1d(4), torch.randn(9, 4)
        net = nn.Sequential(norm, nn.Linear(4, 4), norm).train()
        net(x * 2 + 1)
        before = net.eval()(x)
        assert fold_norms_(net, 23, 8) == 1
        assert torch.allclose(net(x), before, rtol=1e-4, atol=1e-5)

    def test_gains_and_shifts_are_within_their_error(self):
        net = trained()
        exact = copy.deepcopy(net)
        fold_norms_(exact, 23, 8)
        fold_norms_(net)
        for name in ("weight", "bias"):
            found, given = getattr(net.norm, name), getattr(exact.norm, name)
            assert ((found - given).abs() <= given.abs() / 64 * 1.001).all()

    def test_32_bits_leave_weights_alone(self):
        net = trained()
        before = copy.deepcopy(net.state_dict())
        assert to_stored_form_(net) == {}
        changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}

    def test_scales_follow_the_output_channels(self):
        net = trained()
        rounded = to_stored_form_(net, 8)
        assert {name: (one.dim, len(one.scales)) for name, one in rounded.items()} == {
            "conv.weight": (0, 8), "up.weight": (1, 2), "depthwise.weight": (0, 4), "head.weight": (0, 5),
        }  # fmt: skip
        for name, weight in prunable_weights(net).items():
            assert torch.equal(rounded[name].weight(), weight)

    def test_masks_survive(self):
        net = trained()
        mask = torch.rand(net.conv.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
        net.conv.weight.data *= mask
        to_stored_form_(net, 3)
        assert not net.conv.weight[~mask].any()
        assert net.conv.weight.any()

    def test_bits_by_layer_and_a_nearest_name(self):
        net = trained()
        before = net.head.weight.clone()
        assert list(to_stored_form_(net, {"conv.weight": 4, "head.weight": 32})) == ["conv.weight"]
        assert torch.equal(net.head.weight, before)
        with pytest.raises(ValueError, match=r"'conv.wieght'.*conv.weight"):
            to_stored_form_(net, {"conv.wieght": 4})

    def test_nothing_has_changed_where_something_is_refused(self):
        net = trained()
        net.head.weight.data[0, 0] = float("inf")
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(ValueError, match="cannot be rounded"):
            to_stored_form_(net, 4)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
