"""Requests at the edge are exact; a bad model, share or request, and nothing to remove, are refused in one line."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import MISSPELT, refuse, table
from small_net import GRAPH, HALF, IMAGES, LOSS, MODEL, TARGETS, broken
from torch import nn

from pruning import (
    encode_model,
    first_channels,
    from_torch_prune,
    make_mask,
    measure_cost,
    plan_removal,
    prune,
    scan_sensitivity,
    shrink,
    sparsity_at,
    to_torch_prune,
    trace_channels,
)
from spaces import NothingToRemove, PruningPolicy

NAN, INF = math.nan, math.inf
WEIGHT = torch.tensor([[3.0, -1.0, 2.0], [0.5, -4.0, 1.5], [0.1, 0.2, -0.3], [6.0, 5.0, 7.0]])
BAD_SHARES = [
    (1.0, "must satisfy 0 <= sparsity < 1, got 1.0; nearest valid: 0.99"),
    (-0.1, "must satisfy 0 <= sparsity < 1, got -0.1; nearest valid: 0.0"),
    (25, "must satisfy 0 <= sparsity < 1, got 25.0; nearest valid: 0.99; 25 % is 0.25"),
    (10**400, "must satisfy 0 <= sparsity < 1, got inf; nearest valid: 0.99"),
    (NAN, "must satisfy 0 <= sparsity < 1, got nan; nearest valid: a finite number"),
    ("a quarter", "must be a number with 0 <= sparsity < 1, got 'a quarter'"),
    (True, "must be a number with 0 <= sparsity < 1, got True"),
]
"""A value, and what is said of it wherever a sparsity is taken."""


def scan(model: nn.Module = MODEL, data=(IMAGES, TARGETS), **options):
    options = {"levels": (0.5,), "granularities": ("channel",), **options}
    return scan_sensitivity(model, GRAPH, data, LOSS, lambda outputs, targets: 0.5, **options)


def planned(request, criterion: str = "magnitude-l2"):
    return plan_removal(MODEL, request, IMAGES, criterion, GRAPH)


def lengths(kept) -> dict[str, int]:
    return {name: len(places) for name, places in kept.items()}


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("share", "said"), BAD_SHARES, ids=["1", "below", "percent", "huge", "nan", "text", "bool"])
def test_a_bad_sparsity_is_refused_wherever_it_is_given(share, said):
    refuse(lambda: make_mask(WEIGHT, share), said)
    refuse(lambda: PruningPolicy({"a.weight": share}), f"sparsity of 'a.weight' {said}")
    refuse(lambda: PruningPolicy({}, removal={"a.weight": share}), f"removal of 'a.weight' {said}")
    refuse(lambda: planned({"conv0.weight": share}), f"removal of 'conv0.weight' {said}")
    refuse(lambda: first_channels(GRAPH, {"conv0.weight": share}), f"removal of 'conv0.weight' {said}")
    refuse(lambda: scan(levels=(0.5, share)), said)
    if share is not True:
        refuse(lambda: sparsity_at(5, final=share), f"final must satisfy 0 <= final < 1, got {share!r}")


REMOVED = {
    "nothing asked": (lambda: planned({}).kept, {}),
    "nothing of a layer": (lambda: planned({"conv0.weight": 0.0}).kept, {}),
    "nearly all": (lambda: lengths(planned({"conv0.weight": 0.999999}).kept), {"conv0.weight": 1, "norm.weight": 1}),
    "identity": (lambda: equal(prune(MODEL, PruningPolicy({})), MODEL), True),
    "one unit stays": (
        lambda: int(prune(MODEL, PruningPolicy({"conv1.weight": 0.999999})).conv1.weight.count_nonzero()),
        1,
    ),
    "costs without layers": (lambda: measure_cost(nn.ReLU(), IMAGES).macs, 0),
    "jump": (lambda: sparsity_at(0, start=0, end=0), 0.75),
    "nan is stored": (lambda: len(encode_model(broken(NAN))), len(encode_model(MODEL))),
    "plain model": (lambda: dict(from_torch_prune(MODEL).masks), {}),
    "empty masks": (lambda: len(list(to_torch_prune(MODEL, {}).buffers())), len(list(MODEL.buffers()))),
}


@table(REMOVED)
def test_a_request_at_the_edge_is_exact(case):
    call, expected = case
    assert call() == expected


BAD_MODELS = {
    "layer": (lambda: prune(MODEL, PruningPolicy({"conv9.weight": 0.5})), f"'conv9.weight': {MISSPELT} 'conv1.weight'"),
    "no policy": (lambda: prune(MODEL, HALF), "policy must be a PruningPolicy, got dict"),
    "no model": (lambda: prune("net", PruningPolicy(HALF)), "model must be a torch.nn.Module, got str"),
    "nan": (lambda: prune(broken(NAN), PruningPolicy(HALF)), "weight has 1 NaN or infinite elements of 72"),
    "nan channels": (
        lambda: prune(broken(INF), PruningPolicy(HALF, "channel"), IMAGES),
        "conv0.weight: weight has 1 NaN",
    ),
    "nan plan": (lambda: plan_removal(broken(NAN), {"conv1.weight": 0.5}, IMAGES), "conv0.weight: weight has 1 NaN"),
    "nan scan": (lambda: scan(broken(NAN)), "weight has 1 NaN"),
    "data": (lambda: prune(MODEL, PruningPolicy(HALF, criterion="taylor")), "give calibration=pruning.Calibration("),
    "example": (
        lambda: prune(MODEL, PruningPolicy(HALF), torch.zeros(2, 3, 6, 6)),
        "does not run on the example input",
    ),
    "no example": (lambda: plan_removal(MODEL, HALF, None), "example input must be a tensor (N, ...), got NoneType"),
    "empty example": (
        lambda: plan_removal(MODEL, HALF, IMAGES[:0]),
        "shape (0, 1, 6, 6): it needs at least one example",
    ),
    "nan example": (lambda: trace_channels(MODEL, IMAGES * NAN), "holds NaN or infinite values"),
    "request": (lambda: plan_removal(MODEL, 0.5, IMAGES), "request must map layer names to shares, got float"),
    "request's layer": (lambda: planned({"conv0": 0.5}), f"'conv0': {MISSPELT} 'conv0.weight'"),
    "criterion": (lambda: plan_removal(MODEL, HALF, IMAGES, "l2"), f"'l2': {MISSPELT} 'magnitude-l2'"),
    "shrink another": (
        lambda: shrink(nn.Linear(2, 2), planned(HALF)),
        "not the traced model: 'conv0.weight' has shape None",
    ),
    "shrink twice": (lambda: shrink(shrink(MODEL, plan := planned(HALF)), plan), "not the traced model"),
    "cost shape": (
        lambda: measure_cost(MODEL, torch.zeros(2, 3, 6, 6)),
        "does not run on the example input: RuntimeError",
    ),
    "cost empty": (lambda: measure_cost(MODEL, IMAGES[:0]), "it needs at least one example"),
    "cost of text": (lambda: measure_cost("net", IMAGES), "model must be a torch.nn.Module, got str"),
    "cost on text": (lambda: measure_cost(MODEL, "images"), "example input must be a tensor (N, ...), got str"),
    "step": (lambda: sparsity_at("5"), "step must be a finite number of steps, got '5'"),
    "nan step": (lambda: sparsity_at(NAN), "step must be a finite number of steps, got nan"),
    "endless": (lambda: sparsity_at(5, end=INF), "end must be a finite number of steps, got inf"),
    "backwards": (lambda: sparsity_at(5, start=10, end=5), "end must not come before start, got start=10, end=5"),
    "exponent": (lambda: sparsity_at(5, exponent=0), "exponent must be finite and > 0, got 0; 1 is linear, 3 cubic"),
    "exponent's kind": (lambda: sparsity_at(5, exponent="3"), "exponent must be finite and > 0, got '3'"),
    "percent": (lambda: sparsity_at(5, final=25), "0 <= final < 1, got 25; 25 % is 0.25"),
    "no levels": (lambda: scan(levels=()), "levels must be one or more sparsities, got none"),
    "scan word": (lambda: scan(granularities=("chanel",)), f"'chanel': {MISSPELT} 'channel'"),
    "scan text": (lambda: scan(granularities="channel"), "one or more words in a sequence, got 'channel'"),
    "scan criterion": (lambda: scan(criterion="l2"), f"'l2': {MISSPELT} 'magnitude-l2'"),
    "scan data": (lambda: scan(data=(IMAGES, TARGETS[:2])), "as many inputs as targets, at least 1, got 4 and 2"),
    "scan no data": (lambda: scan(data=(IMAGES[:0], TARGETS[:0])), "at least 1, got 0 and 0"),
    "scan another": (lambda: scan(nn.Linear(2, 2)), "not the traced model: 'conv0.weight' has shape None"),
}


@table(BAD_MODELS)
def test_a_bad_model_or_request_is_refused_in_one_line(case):
    refuse(*case)


def scan_a_layer(layer: nn.Module, granularities: tuple[str, ...]):
    inputs = torch.zeros(2, 3, 4, 4)
    graph = trace_channels(layer, inputs)
    return scan_sensitivity(layer, graph, (inputs, TARGETS[:2]), LOSS, lambda outputs, targets: 0.5, granularities)


NOTHING = {
    "plan": lambda: planned({"classifier.weight": 0.5}),
    "plan rounds": lambda: planned({"conv0.weight": 0.06, "conv1.weight": 0.08}),
    "first channels": lambda: first_channels(GRAPH, {"conv0.weight": 0.06}),
    "prune": lambda: prune(MODEL, PruningPolicy({"conv0.weight": 0.006, "classifier.weight": 0.02})),
    "prune pattern": lambda: prune(MODEL, PruningPolicy({"conv0.weight": 0.5}, "2:4"), graph=GRAPH),
    "prune channels": lambda: prune(MODEL, PruningPolicy({"conv0.weight": 0.06}, "channel"), graph=GRAPH),
    "scan": lambda: scan_a_layer(nn.Conv2d(3, 2, 3), ("2:4", "channel")),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_remove_is_never_silent(name):
    refuse(NOTHING[name], "nothing to remove: ", NothingToRemove)
    refuse(NOTHING[name], ": ask for a larger share, or of another layer", NothingToRemove)
