"""Kept importance, output errors, histograms and layouts against plain loops over elements."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning.analysis.granularity_damage import (
    FINE_TO_COARSE,
    LayerShare,
    kept_importance,
    layer_shares,
    mean_shares,
    output_errors,
)
from pruning.analysis.histograms import layer_histograms
from pruning.analysis.weight_layout import corner, laid_out
from pruning.calibration import Calibration
from pruning.channels.tracing import trace_channels
from pruning.importance.scores import ImportanceScores
from pruning.importance.weights import NotFiniteError
from pruning.prune import prune
from spaces.cost.effect import NothingToRemove
from spaces.granularity import GRANULARITIES, unpruned_reason
from spaces.policy import PruningPolicy

SPARSITY = 0.25


class Mixed(nn.Module):
    """One layer of each kind: convolution, grouped, transposed, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, (1, 3), groups=4, bias=False)
        self.upward = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.upward(self.grouped(self.conv(images).relu()).relu()).relu()
        return self.linear(seen.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(2)
    return Mixed().eval()


@pytest.fixture(scope="module")
def calibration():
    generator = torch.Generator().manual_seed(5)
    return Calibration(torch.randn(37, 2, 6, 8, generator=generator), torch.zeros(37, dtype=torch.long))


@pytest.fixture(scope="module")
def graph(mixed, calibration):
    return trace_channels(mixed, calibration.inputs[:2])


@pytest.fixture(scope="module")
def rows(mixed, graph, calibration):
    importance = ImportanceScores(mixed, "magnitude-l1", graph, calibration)
    return layer_shares(importance, sparsities=(SPARSITY, 0.5))


def by_loops(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None, images: np.ndarray) -> np.ndarray:
    """One example through one layer, product by product."""
    if isinstance(module, nn.Linear):
        outputs = np.zeros(weight.shape[0])
        for o, i in np.ndindex(weight.shape):
            outputs[o] += weight[o, i] * images[i]
        return outputs + bias
    (sy, sx), (py, px), groups = module.stride, module.padding, module.groups
    height, width = images.shape[1:]
    kh, kw = weight.shape[2:]
    if module.transposed:
        more = module.output_padding
        shape = (height - 1) * sy - 2 * py + kh + more[0], (width - 1) * sx - 2 * px + kw + more[1]
        outputs = np.zeros((weight.shape[1], *shape))
        for i, o, ky, kx in np.ndindex(weight.shape):
            for y, x in np.ndindex(height, width):
                to_y, to_x = y * sy + ky - py, x * sx + kx - px
                if 0 <= to_y < shape[0] and 0 <= to_x < shape[1]:
                    outputs[o, to_y, to_x] += weight[i, o, ky, kx] * images[i, y, x]
    else:
        shape = (height + 2 * py - kh) // sy + 1, (width + 2 * px - kw) // sx + 1
        outputs = np.zeros((weight.shape[0], *shape))
        for o, i, ky, kx in np.ndindex(weight.shape):
            channel = o // (weight.shape[0] // groups) * weight.shape[1] + i
            for y, x in np.ndindex(shape):
                from_y, from_x = y * sy + ky - py, x * sx + kx - px
                if 0 <= from_y < height and 0 <= from_x < width:
                    outputs[o, y, x] += weight[o, i, ky, kx] * images[channel, from_y, from_x]
    return outputs if bias is None else outputs + bias[:, None, None]


def inputs_of(model: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    conv = model.conv(images).relu()
    grouped = model.grouped(conv).relu()
    upward = model.upward(grouped).relu()
    seen = {"conv": images, "grouped": conv, "upward": grouped, "linear": upward.mean(dim=(2, 3))}
    return {name: tensor.detach().double().numpy() for name, tensor in seen.items()}


@pytest.mark.parametrize("name", ["conv", "grouped", "upward", "linear"])
def test_output_errors_are_those_of_plain_loops(mixed, name):
    images = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(8))
    module = getattr(mixed, name)
    generator = torch.Generator().manual_seed(9)
    masks = {f"{name}.weight": torch.rand(module.weight.shape, generator=generator) > SPARSITY}
    if module.bias is not None:
        masks[f"{name}.bias"] = torch.rand(module.bias.shape, generator=generator) > SPARSITY
    weight = module.weight.detach().double().numpy()
    bias = None if module.bias is None else module.bias.detach().double().numpy()
    masked_bias = None if bias is None else np.where(masks[f"{name}.bias"].numpy(), bias, 0)
    error = whole = 0.0
    for example in inputs_of(mixed, images)[name]:
        dense = by_loops(module, weight, bias, example)
        masked = by_loops(module, np.where(masks[f"{name}.weight"].numpy(), weight, 0), masked_bias, example)
        error, whole = error + ((dense - masked) ** 2).sum(), whole + (dense**2).sum()
    calibration = Calibration(images, torch.zeros(3, dtype=torch.long))
    before = copy.deepcopy(mixed.state_dict())
    (found,) = output_errors(mixed, {f"{name}.weight": [masks]}, calibration)[f"{name}.weight"]
    assert found == pytest.approx(math.sqrt(error / whole), rel=1e-5) and 0.01 < found < 1
    assert all(torch.equal(value, before[key]) for key, value in mixed.state_dict().items())


def test_shares_are_those_of_the_pruned_network(mixed, graph, calibration, rows):
    """Masks, kept magnitudes and achieved sparsity read from `prune`, channels zeroed in their own weight."""
    for row in rows:
        if row.granularity == "channel":
            continue
        policy = PruningPolicy({row.layer: row.sparsity}, row.granularity, criterion="magnitude-l1")
        try:
            model = prune(mixed, policy)
        except NothingToRemove:  # a fixed pattern that is nearer to nothing
            model = mixed
        pruned = model.get_parameter(row.layer).detach().flatten().tolist()
        dense = mixed.get_parameter(row.layer).detach().flatten().tolist()
        assert row.achieved == pytest.approx(sum(v == 0 for v in pruned) / len(dense))
        assert row.kept_importance == pytest.approx(sum(map(abs, pruned)) / sum(map(abs, dense)))
    seen = [(row.granularity, row.layer) for row in rows if row.sparsity == SPARSITY]
    assert len(seen) == len(set(seen)) == len(rows) / 2
    layers = graph.network.layers
    assert set(seen) == {(g, one.name) for g in GRANULARITIES for one in layers if not unpruned_reason(one, g)}


def test_channels_are_judged_with_their_bias(mixed, graph, calibration, rows):
    (row,) = [r for r in rows if (r.granularity, r.layer, r.sparsity) == ("channel", "upward.weight", 0.5)]
    magnitudes = mixed.upward.weight.detach().abs().sum(dim=(0, 2, 3))
    lost = sorted(range(6), key=lambda o: float(magnitudes[o]))[:3]
    assert row.kept_importance == pytest.approx(1 - float(magnitudes[lost].sum() / magnitudes.sum()))
    inputs = torch.tensor(inputs_of(mixed, calibration.inputs)["upward"]).float()
    outputs = mixed.upward(inputs).detach()
    assert row.output_error == pytest.approx(float(outputs[:, lost].norm() / outputs.norm()), rel=1e-5)


def test_the_freest_choice_keeps_the_most(rows):
    """At equal counts no other choice of weights has larger kept magnitudes."""
    best = {(r.layer, r.sparsity): r.kept_importance for r in rows if r.granularity == "fine-grained"}
    compared = 0
    for row in rows:
        numel = {"conv.weight": 144, "grouped.weight": 48, "upward.weight": 432, "linear.weight": 30}[row.layer]
        if round(row.achieved * numel) == math.floor(row.sparsity * numel + 0.5):
            assert row.kept_importance <= best[row.layer, row.sparsity] + 1e-6
            compared += row.granularity != "fine-grained"
    assert compared > 10


def test_layers_without_an_output_have_no_error(calibration):
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.silent = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2, bias=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.silent(self.used(inputs) * 0)

    model, inputs = Idle(), Calibration(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    masks = {f"{name}.weight": torch.ones_like(getattr(model, name).weight).bool() for name in vars(model)["_modules"]}
    for mask in masks.values():
        mask[0] = False
    found = output_errors(model, {name: [{name: mask}] for name, mask in masks.items()}, inputs)
    assert found["unused.weight"] == found["silent.weight"] == [None] and 0 < found["used.weight"][0] < 1


def share(granularity: str, layer: str, asked: float, achieved: float, kept: float, error: float | None = 0.5):
    return LayerShare(layer, granularity, asked, achieved, kept, error)


def test_means_compare_equal_sparsities_over_the_same_layers_only():
    means = mean_shares(
        [
            share("fine-grained", "a", 0.75, 0.75, 0.9), share("fine-grained", "b", 0.75, 0.75, 0.5, 0.1),
            share("fine-grained", "c", 0.75, 0.76, 0.7, 0.3), share("channel", "b", 0.75, 0.75, 0.3, 0.8),
            share("channel", "c", 0.75, 0.72, 0.2, None), share("channel", "a", 0.75, 0.6, 0.1),
            share("2:4", "b", 0.75, 0.5, 0.6), share("fine-grained", "a", 0.3, 0.3, 0.99),
        ]
    )  # fmt: skip
    found = {(m.sparsity, m.granularity): m for m in means}
    assert set(found) == {(0.75, "fine-grained"), (0.75, "channel"), (0.3, "fine-grained")}
    assert found[0.75, "fine-grained"].layers == found[0.75, "channel"].layers == ("b", "c")
    assert found[0.75, "fine-grained"].kept_importance == pytest.approx(0.6)
    assert found[0.75, "fine-grained"].output_error == pytest.approx(0.2)
    assert found[0.75, "channel"].output_error is None and found[0.3, "fine-grained"].layers == ("a",)


def test_means_of_nothing_in_common_are_none():
    assert mean_shares([share("kernel", "a", 0.5, 0.5, 0.9), share("channel", "b", 0.5, 0.5, 0.5)]) == ()


def test_granularities_are_all_there_once():
    assert sorted(FINE_TO_COARSE) == sorted(GRANULARITIES)


def test_kept_importance_of_zeros_is_whole():
    assert kept_importance(torch.zeros(3), torch.tensor([True, False, False])) == 1.0


@pytest.mark.parametrize(
    ("shape", "output_dim"),
    [((4, 3, 2, 5), 0), ((3, 4, 2, 5), 1), ((4, 3), 0), ((4, 3, 5), 0), ((2, 3, 2, 4, 5), 0), ((3, 2, 4), 1)],
)
def test_every_element_lies_where_its_indices_say(shape, output_dim):
    weight = torch.arange(math.prod(shape)).reshape(shape)
    flat = laid_out(weight, output_dim)
    height, width = math.prod(shape[2:-1]), math.prod(shape[2:][-1:])
    assert flat.shape == (shape[output_dim] * height, shape[1 - output_dim] * width)
    for place in np.ndindex(shape):
        o, i, *kernel = place[output_dim], place[1 - output_dim], *place[2:]
        along = kernel[-1] if kernel else 0
        down = int(np.ravel_multi_index(kernel[:-1], shape[2:-1])) if kernel[:-1] else 0
        assert flat[o * height + down, i * width + along] == weight[place]


def test_a_corner_has_whole_kernels_and_stays_within_its_cells():
    weight = torch.arange(40 * 30 * 9).reshape(40, 30, 3, 3)
    assert torch.equal(corner(weight, cells=20), weight[:6, :6])
    assert torch.equal(corner(weight, 1, cells=100), weight[:33, :30]) and corner(weight, cells=2).shape == (1, 1, 3, 3)
    assert corner(torch.zeros(50, 70), cells=60).shape == (50, 60)
    assert corner(torch.zeros(50, 70, 5), cells=60).shape == (50, 12, 5)


WEIGHTS = st.lists(st.floats(-3, 3, width=16).filter(lambda v: v == 0 or abs(v) > 1e-3), min_size=1, max_size=60)


@given(WEIGHTS, st.data())
def test_histograms_count_every_weight_once(values, data):
    dense = torch.tensor(values)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    left = dense[: data.draw(st.integers(1, len(values)))]
    found = layer_histograms([dense, dense * kept, left], bins=7)
    assert [h.numel for h in found] == [len(values)] * 3 and len({h.edges for h in found}) == 1
    assert found[2].gone == len(values) - len(left) and found[0].gone == found[1].gone == 0
    for histogram, stage in zip(found, (dense, dense * kept, left), strict=True):
        nonzero = [v for v in stage.tolist() if v != 0]
        assert histogram.zeros == len(stage) - len(nonzero)
        edges = histogram.edges
        for b, count in enumerate(histogram.counts):
            last = b == len(histogram.counts) - 1
            assert count == sum(edges[b] <= v < edges[b + 1] or (last and v == edges[-1]) for v in nonzero)


def test_weights_far_from_the_others_share_the_outermost_bins():
    among = torch.arange(-999, 1001) / 1000
    (alone,) = layer_histograms([among], bins=10)
    (found,) = layer_histograms([torch.cat([among, torch.tensor([50.0, 51, 52])])], bins=10)
    assert np.allclose(np.diff(alone.edges), 0.1999)
    assert (found.edges[0], found.edges[-1]) == (pytest.approx(-0.999), 52)
    assert np.allclose(np.diff(found.edges)[1:-1], 0.199, atol=0.001) and found.edges[-2] == pytest.approx(
        0.797, abs=0.005
    )
    assert found.counts[-1] == 3 + sum(v >= found.edges[-2] for v in among.tolist())


def test_a_histogram_refuses_what_is_no_number():
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        layer_histograms([torch.tensor([1.0, math.nan])])
