"""Weights that no policy can name are listed with their reason, and nothing offers them to be pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from pruning import trace_channels
from pruning.unprunable import unprunable_weights
from search.cli.text_tables import layer_table, whole_table
from spaces import PruningPolicy, Space, footprint
from spaces.cost.footprint import stored_fractions
from spaces.search_space.projection import Projector


class Words(nn.Module):
    """All kinds of weights: tied, recurrent, attention's, parametrised, a table of positions, norms and biases."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.places = nn.Parameter(torch.randn(5, 12))
        self.recurrent = nn.GRU(12, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.inner, self.narrow = nn.Linear(12, 24), nn.Linear(24, 12)
        self.normed = parametrizations.weight_norm(nn.Conv1d(12, 12, 3, padding=1))
        self.out = nn.Linear(12, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        x = self.recurrent(self.words(tokens) + self.places)[0]
        x = self.norm(x + self.attention(x, x, x)[0])
        x = self.narrow(self.inner(x).relu())
        return self.out(self.normed(x.transpose(1, 2)).transpose(1, 2))


@pytest.fixture(scope="module")
def words():
    torch.manual_seed(0)
    model = Words().eval()
    return model, trace_channels(model, torch.randint(20, (2, 5))).network


def test_every_weight_is_a_layer(words):
    model, network = words
    known = {layer.name: layer for layer in network.layers}
    vectors = {n for n, p in model.named_parameters() if "norm." in n or n.endswith("bias") or ".bias_" in n}
    assert known.keys() | vectors == dict(model.named_parameters()).keys()
    assert not known.keys() & vectors
    kinds = {
        "places": "parameter", "words.weight": "embedding", "recurrent.weight_ih_l0": "recurrent",
        "recurrent.weight_hh_l0": "recurrent", "attention.in_proj_weight": "attention",
        "normed.parametrizations.weight.original0": "parametrized",
        "normed.parametrizations.weight.original1": "parametrized",
    }  # fmt: skip
    whole = {layer.name: layer for layer in network.layers if not layer.prunable}
    assert {name: layer.kind for name, layer in whole.items()} == kinds
    reasons = {
        "places": "parameter of Words", "words.weight": "'out.weight' is the same tensor", "attention": "Attention",
        "recurrent": "GRU 'recurrent'", "normed": "computes its weight from it",
    }  # fmt: skip
    for name, layer in whole.items():
        assert reasons[next(start for start in reasons if name.startswith(start))] in layer.obstacle


def test_positions_are_those_of_the_tokens(words):
    _, network = words
    positions = {layer.name: layer.positions for layer in network.layers}
    assert {name for name, count in positions.items() if count == 0} == {
        "places", "normed.parametrizations.weight.original0",
    }  # fmt: skip
    assert {count for count in positions.values() if count} == {5}


def test_policies_know_only_prunable_ones(words):
    _, network = words
    prunable = ("attention.out_proj.weight", "inner.weight", "narrow.weight")
    assert network.layer_names == tuple(layer.name for layer in network.prunable) == prunable
    with pytest.raises(ValueError, match=r"unknown layer 'recurrent\.weight_ih_l0'"):
        footprint(network, PruningPolicy({"recurrent.weight_ih_l0": 0.25}))
    space = Space(network, 0.9, ("fine-grained", "2:4", "channel"), mixed=True)
    assert set(space.knobs) == set(prunable)
    params = space.params(0.9, "fine-grained", dict.fromkeys(prunable, 0.25), space.seed_schedule)
    proposal = Projector(space).project(params)
    assert set(proposal.policy.sparsity) == set(prunable)
    with pytest.raises(ValueError, match=r"reachable is 0\.[78]"):  # what stays whole is known before training
        Space(network, 0.5, ("fine-grained",))


def test_a_limit_on_macs_counts_what_cannot_shrink(words):
    _, network = words
    lean = Space(network, 0.95, ("channel",)).target(1.0, "channel").macs_floor
    kept = dict.fromkeys(("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"), 24 * 12)
    assert kept  # the share below by hand: all but 23 of the 24 inner channels
    macs = 5 * (2 * 36 * 12 + 4 * 12 * 12 + 2 * 24 * 12 + 12 * 12 * 3 + 20 * 12)
    assert footprint(network, PruningPolicy({})).macs == macs
    assert lean == pytest.approx((macs - 5 * 2 * 23 * 12) / macs)  # one of the inner channels stays
    with pytest.raises(ValueError, match=r"MACs limit 0\.3 cannot be reached"):
        Space(network, 0.95, ("channel",), max_macs=0.3)


def test_hooks_name_what_they_replace():
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
    with pytest.warns(FutureWarning):
        weight_norm(model[0])
    prune.random_unstructured(model[1], "weight", 0.25)
    assert [(layer.name, layer.prunable, layer.obstacle) for layer in unprunable_weights(model, {})] == [
        ("0.weight_g", False, "Linear '0' computes its weight from it"),
        ("0.weight_v", False, "Linear '0' computes its weight from it"),
        ("1.weight_orig", False, "Linear '1' computes its weight from it"),
    ]


def test_tied_weights_slopes_and_names_like_those_of_hooks():
    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.gate_g = nn.PReLU(6), nn.Parameter(torch.ones(6))
            self.first, self.second = nn.GRU(6, 6), nn.GRU(6, 6)
            self.second.weight_hh_l0 = self.first.weight_hh_l0

    found = {layer.name: (layer.kind, layer.obstacle) for layer in unprunable_weights(Kinds(), {})}
    assert found.keys() == {"first.weight_ih_l0", "first.weight_hh_l0", "second.weight_ih_l0", "gate_g"}
    assert found["first.weight_hh_l0"] == ("recurrent", "it is tied: 'second.weight_hh_l0' is the same tensor")
    assert found["gate_g"] == ("parameter", "it is a parameter of Kinds, of no known layer")


def test_a_network_that_cannot_be_traced_keeps_the_reasons():
    class Unfollowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.LSTMCell(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.out(self.cell(x)[0].detach().numpy().sum() + self.cell(x)[0])

    network = trace_channels(Unfollowed(), torch.randn(2, 6)).network
    cell = [layer for layer in network.layers if layer.name.startswith("cell.weight")]
    assert len(cell) == 2
    assert all("LSTMCell 'cell' multiplies it" in layer.obstacle for layer in cell)


def test_tables_list_all_that_is_stored(words):
    network = words[1]
    shares = stored_fractions(network)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["words.weight"] == pytest.approx(20 * 12 * 4 / footprint(network, PruningPolicy({})).encoded_bytes)
    both = layer_table(network) + whole_table(network)
    assert all(layer.name.split(".")[0] in both for layer in network.layers)
    assert "other parameters" in both
    assert "words.weight" not in layer_table(network)
    assert "inner.weight" not in whole_table(network)
