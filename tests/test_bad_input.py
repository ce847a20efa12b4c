"""Bad input at every public entry point: the exact result, or one line with what, the value and the remedy."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning import (
    apply_masks_,
    encode_model,
    first_channels,
    from_torch_prune,
    make_mask,
    measure_cost,
    plan_removal,
    prune,
    read_sparse,
    scan_sensitivity,
    shrink,
    sparsity_at,
    to_torch_prune,
    trace_channels,
    write_sparse,
)
from pruning.importance.scores import unit_importance
from pruning.sparse_file import DamagedFile
from search import Recipe, SearchConfig, Workload, get_workload, load_front
from search.config import make_config
from search.errors import PrunefrontError, Refused, UsageError
from spaces import NothingToRemove, PruningPolicy, Schedule, Space
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.validation import unknown

NAN, INF = math.nan, math.inf
MISSPELT = "did you mean"
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
BAD_LIMITS = {
    0: "got 0",
    1.5: "got 1.5; 1.5 % is 0.015",
    25: "got 25; 25 % is 0.25",
    -1: "got -1",
    NAN: "got nan",
    "x": "got 'x'",
}
"""Value -> what is said of it wherever a limit is taken, a share of the dense model's."""
WEIGHT = torch.tensor([[3.0, -1.0, 2.0], [0.5, -4.0, 1.5], [0.1, 0.2, -0.3], [6.0, 5.0, 7.0]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv1(self.norm(self.conv0(images)).relu()).relu().mean((2, 3)))


torch.manual_seed(0)
MODEL = Net().eval()
IMAGES, TARGETS = torch.randn(4, 1, 6, 6), torch.arange(4)
GRAPH = trace_channels(MODEL, IMAGES)
HALF = {"conv0.weight": 0.5}
LOSS = nn.functional.cross_entropy


def broken(value: float) -> nn.Module:
    """The network with one bad weight."""
    model = copy.deepcopy(MODEL)
    model.conv0.weight.data[0, 0, 0, 0] = value
    return model


def half_masked() -> nn.Module:
    layer = nn.Linear(2, 2)
    torch_prune.identity(layer, "weight")
    layer.weight_mask.fill_(0.5)
    return layer


def scan(model: nn.Module = MODEL, data=(IMAGES, TARGETS), **options):
    options = {"levels": (0.5,), "granularities": ("channel",), **options}
    return scan_sensitivity(model, GRAPH, data, LOSS, lambda outputs, targets: 0.5, **options)


def planned(request, criterion: str = "magnitude-l2"):
    return plan_removal(MODEL, request, IMAGES, criterion, GRAPH)


def evidence() -> AllocationInputs:
    found = unit_importance(MODEL, GRAPH, "fine-grained")
    return AllocationInputs.of(GRAPH.network, "fine-grained", found, None, "encoded")


def made(**changes) -> Workload:
    pair = (IMAGES, TARGETS)
    parts = {"name": "made", "build_model": Net, "fit": pair, "calibration": pair, "validation": pair, "test": pair}
    return Workload(**{**parts, **changes})


def refuse(call: Callable[[], object], said: str, kind: type[Exception] = ValueError) -> None:
    """The call raises an error of one line that says this, and none of ours is caught by accident."""
    with pytest.raises(kind) as raised:
        call()
    text = str(raised.value)
    assert said in text and "\n" not in text, text
    assert isinstance(raised.value, (ValueError, PrunefrontError, FileNotFoundError)), raised.type


def lengths(kept) -> dict[str, int]:
    return {name: len(places) for name, places in kept.items()}


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def table(cases: dict[str, tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases.items()])


# What a mask is made of

MASKED = {
    "nothing": (WEIGHT, 0, {}, 0),
    "nearly all": (WEIGHT, 0.999999, {}, 11),
    "one element": (torch.tensor([2.0]), 0.9, {}, 0),
    "a number": (torch.tensor(2.0), 0.9, {}, 0),
    "all equal": (torch.ones(10), 0.25, {}, 3),
    "all zero": (torch.zeros(10), 0.25, {}, 3),
    "whole numbers": (torch.arange(4), 0.25, {}, 1),
    "own scores": (WEIGHT, 0.25, {"scores": torch.arange(12).view(4, 3)}, 3),
}


@table(MASKED)
def test_a_mask_at_the_edge_is_exact(case):
    weight, share, options, removed = case
    mask = make_mask(weight, share, **options)
    assert int((~mask).sum()) == removed and mask.shape == weight.shape
    if weight.dim() == 1 and removed:
        assert not mask[:removed].any(), "ties go by the lowest index"


BAD_MASKS = {
    "empty": (lambda: make_mask(torch.empty(3, 0), 0.5), "weight is empty"),
    "list": (lambda: make_mask([1.0, 2.0], 0.5), "weight must be a tensor, got list"),
    "none": (lambda: make_mask(None, 0.5), "weight must be a tensor, got NoneType"),
    "complex, scored": (
        lambda: make_mask(torch.tensor([1j, 2.0]), 0.5, scores=torch.ones(2)),
        "must be real, got torch.complex64",
    ),
    "complex": (lambda: make_mask(torch.tensor([1j, 2.0]), 0.5), "weight must be real, got torch.complex64"),
    "nan": (lambda: make_mask(torch.tensor([1.0, NAN]), 0.5), "weight has 1 NaN or infinite elements of 2"),
    "inf": (lambda: make_mask(torch.tensor([1.0, -INF]), 0.5), "weight has 1 NaN or infinite elements of 2"),
    "nan beside scores": (lambda: make_mask(WEIGHT * NAN, 0.5, scores=WEIGHT), "weight holds NaN or infinite"),
    "no share": (lambda: make_mask(WEIGHT), "give one of sparsity, 0 <= sparsity < 1, and count, got None and None"),
    "granularity": (lambda: make_mask(WEIGHT, 0.5, "chanel"), f"'chanel': {MISSPELT} 'channel'"),
    "no granularity": (lambda: make_mask(WEIGHT, 0.5, None), "unknown granularity None"),
    "criterion": (lambda: make_mask(WEIGHT, 0.5, criterion="l1"), f"'l1': {MISSPELT} 'magnitude-l1'"),
    "by data": (lambda: make_mask(WEIGHT, 0.5, criterion="taylor"), "'taylor' needs more than a weight"),
    "pattern": (lambda: make_mask(WEIGHT, 0.5, "2:4"), "2:4 needs a multiple of 4 inputs, the weight has 3"),
    "scores' shape": (lambda: make_mask(WEIGHT, 0.5, scores=WEIGHT[:2]), "shape (4, 3), got (2, 3)"),
    "scores' kind": (lambda: make_mask(WEIGHT, 0.5, scores=[1, 2]), "must be tensors, got Tensor and list"),
    "scores nan": (lambda: make_mask(WEIGHT, 0.5, scores=WEIGHT * NAN), "scores hold NaN or infinite values"),
    "scores inf": (lambda: make_mask(WEIGHT, 0.5, scores=WEIGHT / 0), "scores hold NaN or infinite values"),
    "applied name": (lambda: apply_masks_(MODEL, {"conv0.wieght": WEIGHT > 0}), f"{MISSPELT} 'conv0.weight'"),
    "applied shape": (
        lambda: apply_masks_(MODEL, {"classifier.bias": WEIGHT > 0}),
        "must be bool of shape (4,), got bool of shape (4, 3)",
    ),
    "applied floats": (
        lambda: apply_masks_(MODEL, {"classifier.bias": torch.ones(4)}),
        "must be bool of shape (4,), got float32",
    ),
    "torch name": (lambda: to_torch_prune(MODEL, {"conv0.wieght": WEIGHT > 0}), f"{MISSPELT} 'conv0.weight'"),
    "torch shape": (lambda: to_torch_prune(MODEL, {"conv0.weight": WEIGHT > 0}), "has shape (4, 3), not (8, 1, 3, 3)"),
    "torch halves": (
        lambda: to_torch_prune(MODEL, {"classifier.bias": torch.full((4,), 0.5)}),
        "holds 0.5: a mask holds only 0 and 1",
    ),
    "torch nan": (lambda: to_torch_prune(MODEL, {"classifier.bias": torch.full((4,), NAN)}), "holds nan: a mask holds"),
    "torch list": (lambda: to_torch_prune(MODEL, {"classifier.bias": [1]}), "must be a tensor of bools, got list"),
    "from torch": (lambda: from_torch_prune(half_masked()), "weight_mask holds 0.5: a mask holds only 0 and 1"),
}


@table(BAD_MASKS)
def test_a_bad_mask_is_refused_in_one_line(case):
    refuse(*case)


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


# Models, policies and what is removed

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


# Words and files

BAD_CHOICES = {
    "policy of nothing": (lambda: PruningPolicy(None), "sparsity must map layer names to shares, got NoneType"),
    "policy key": (lambda: PruningPolicy({1: 0.5}), "sparsity must have layer names as keys, got 1"),
    "policy from nothing": (lambda: PruningPolicy.from_dict(None), "a policy must be a mapping"),
    "policy from no text": (lambda: PruningPolicy.from_json(None), "JSON must be text, got NoneType"),
    "policy criterion": (lambda: PruningPolicy(HALF, criterion=None), "unknown criterion None"),
    "schedule": (lambda: Schedule("fast"), "unknown schedule 'fast'"),
    "schedule of no word": (lambda: Schedule(["linear"]), "unknown schedule ['linear']"),
    "searched schedule of no word": (lambda: SearchConfig(schedule=[["linear"]]), "unknown schedule ['linear']"),
    "schedule exponent": (lambda: Schedule("polynomial", "3"), "exponent must be a number, got '3'"),
    "schedule ramp": (
        lambda: Schedule("polynomial", 3.0, 60),
        "0 < ramp <= 1, got 60; 60 % is 0.6; the default is 0.6",
    ),
    "space size": (lambda: Space(GRAPH.network, 1e-9), "reachable is"),
    "space words": (lambda: Space(GRAPH.network, 0.5, ("chanel",)), f"'chanel': {MISSPELT} 'channel'"),
    "space text": (lambda: Space(GRAPH.network, 0.5, "channel"), "none twice, got 'channel'"),
    "space schedules": (lambda: Space(GRAPH.network, 0.5, schedules=("fast",)), "unknown schedule 'fast'"),
    "space none": (lambda: Space(GRAPH.network, 0.5, schedules=()), "schedule must be a tuple of one or more"),
    "space metric": (lambda: Space(GRAPH.network, 0.5, metric="bytes"), "unknown size metric 'bytes'"),
    "space min size": (lambda: Space(GRAPH.network, 0.5, min_size=0.6), "0 < min_size <= 0.5, got 0.6"),
    "allocator": (lambda: allocate("unifrom", Target(GRAPH.network, 0.5), AllocationInputs()), f"{MISSPELT} 'uniform'"),
    "no profile": (lambda: allocate("scan", Target(GRAPH.network, 0.5), evidence()), "needs a profile: scan the model"),
    "too small": (lambda: allocate("uniform", Target(GRAPH.network, 1e-9), evidence()), "the smallest is"),
    "no names": (lambda: unknown_of_none(), "unknown study 'a': there is none yet"),
    "workload name": (lambda: made(name="a b"), "may hold letters, digits, '.', '_' and '-', got 'a b'"),
    "workload empty": (lambda: made(fit=(IMAGES[:0], TARGETS[:0])), "as many inputs as targets, got 0 and 0"),
    "workload unequal": (
        lambda: made(test=(IMAGES, TARGETS[:2])),
        "'test' needs as many inputs as targets, got 4 and 2",
    ),
    "workload of none": (lambda: made(fit=7), "must be a pair of tensors, a map-style dataset, "),
    "recipe": (lambda: Recipe(learning_rate=10**400), "learning_rate must be a number > 0"),
}


def unknown_of_none() -> None:
    raise ValueError(unknown("study", "a", []))


@table(BAD_CHOICES)
def test_a_bad_choice_is_refused_in_one_line(case):
    refuse(case[0], case[1], (ValueError, Unreachable))


@pytest.mark.parametrize("value", BAD_LIMITS)
def test_a_bad_limit_is_refused_wherever_it_is_given(value, tmp_path):
    said = BAD_LIMITS[value]
    for name in ("max_size", "max_macs", "max_latency"):
        refuse(lambda name=name: Space(GRAPH.network, **{"max_size": 0.5, name: value}), f"0 < {name} <= 1, {said}")
        option = name.replace("_", "-")
        for make in (SearchConfig, make_config):
            words = f"{option} must be a share of the dense model's, > 0 and <= 1, {said}"
            refuse(lambda make=make, name=name: make(**{name: value}), words, UsageError)
    refuse(lambda: allocate("uniform", Target(GRAPH.network, value), evidence()), f"0 < share <= 1, {said}")
    for name in ("max_size", "max_macs", "max_latency"):
        words = f"0 < {name.replace('_', '-')} <= 1, {said}"
        refuse(lambda name=name: load_front("mine", tmp_path, **{name: value}), words, UsageError)


BAD_OPTIONS = {
    "trials": {
        0: "trials must be a whole number, >= 1, got 0; the default is 24",
        -1: "got -1",
        2.5: "got 2.5",
        "many": "'many'",
        10**20: f"trials must be at most 1000000, got {10**20}",
    },
    "timeout": {0: "timeout must be a number, > 0, got 0", NAN: "got nan", "1h": "got '1h'"},
    "width": {0: "width must be a number, > 0, got 0", INF: "got inf", "1/8": "got '1/8'"},
    "seed": {
        -1: "seed must be a whole number, >= 0 and < 2147483648, got -1; the default is 0",
        2**31: f"got {2**31}",
    },
    "finalists": {21: "finalists must be a whole number, >= 0 and <= 20, got 21; the default is 3"},
    "round_to": {0: "round-to must be a whole number, >= 1 and <= 1024, got 0; the default is 1"},
    "granularity": {
        "chanel": f"unknown granularity 'chanel': {MISSPELT} 'channel'",
        "channel,channel": "granularity must be one or more of",
        "": "unknown granularity ''",
        (): "granularity must be one or more",
        (1,): "unknown granularity 1",
        5: "granularity must be text or a list of words, got 5",
    },
    "bits": {
        1: "bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got 1; nearest valid: 2",
        33: "got 33; nearest valid: 32",
        3.5: "got 3.5; nearest valid: 4",
        "8": "got '8'; nearest valid: 8",
        (8, "5"): "got '5'; nearest valid: 5",
        (True,): "got True",
        (): "bits must be one or more of 32, 16, 8, 7, 6, 5, 4, 3, 2, each once, got ()",
        (4, 4): "each once, got (4, 4)",
    },
    "criterion": {"l2": f"unknown criterion 'l2': {MISSPELT} 'magnitude-l2'", 5: "criterion must be text, got 5"},
    "sampler": {"tpee": f"unknown sampler 'tpee': {MISSPELT} 'tpe'"},
    "size_metric": {"bytes": "size-metric must be 'encoded' or 'nonzero', got 'bytes'; the default is 'encoded'"},
    "speed": {"watts": "speed must be 'macs' or 'latency', got 'watts'; the default is 'latency'"},
    "seeds": {"maybe": "seeds must be true or false, got 'maybe'; the default is True"},
    "min_accuracy": {
        92: "min-accuracy must be a share such as 0.92, or dense-0.005 for 0.5 points less, got ",
        "92%": "got '92%'; 92 % is 0.92",
        "35": "got '35'; 35 % is 0.35; values in the unit of a metric of your own are min-score's",
        "dense": "got 'dense'",
        NAN: "got ",
    },
    "min_score": {
        "92%": "min-score must be a value in the metric's unit such as 31.5, or dense-0.5 (dense+0.5 where less is ",
        "dense": "got 'dense'",
        "dense0.5": "got 'dense0.5'",
        NAN: "got nan",
    },
    "min_size": {"0.5 %": "got '0.5 %'; 0.5 % is 0.005", 0.3: "min-size must be at most max-size 0.25, got 0.3"},
    "max_size": {
        "25%": "max-size must be a share of the dense model's, > 0 and <= 1, got '25%'; 25 % is 0.25",
        "a quarter": "got 'a quarter'",
    },
    "study": {
        "../outside": "got '../outside'",
        "/absolute": "got '/absolute'",
        "x" * 300: "1 to 100 letters",
        "artifacts": "got 'artifacts'",
        5: "study must be text, got 5",
    },
    "root": {5: "root must be text, got 5"},
    "trails": {3: f"{MISSPELT} 'trials'"},
    "max_sise": {0.3: f"{MISSPELT} 'max_size'"},
}
"""Option -> a value -> what is said of it in Python; in a STUDY.toml and on the command line nearly so."""


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_a_bad_option_is_refused_in_our_words(option):
    for value, said in BAD_OPTIONS[option].items():
        for make in (SearchConfig, make_config):
            refuse(lambda make=make, value=value: make(**{option: value}), said, UsageError)
            refuse(lambda make=make, value=value: make(**{option: value}), said, ValueError)


def test_one_wish_is_not_given_twice():
    refuse(
        lambda: make_config(min_accuracy=0.9, min_score="dense-0.5"),
        "min-accuracy '0.9' and min-score 'dense-0.5' ask for the same, as a share and in the metric's unit: give one",
        UsageError,
    )


def test_all_wrong_options_are_told_at_once():
    for option in ("trials", "width", "finalists"):
        refuse(lambda: make_config(trials=0, width=-1, finalists=-1), f"{option} must be ", UsageError)


BAD_PARTS = {
    "build_model": (None, "build_model must be a function, got None"),
    "loss": ("mse", "loss must be a function, got 'mse'"),
    "metric": (None, "metric must be a function, got None"),
    "augment": (5, "augment must be a function, got 5"),
    "recipe": ({"batch": 5}, "recipe must be a search.Recipe, got dict"),
    "example_input": (IMAGES * NAN, "the example input holds NaN or infinite values"),
    "weights": (5, "weights must name a file, got int"),
}


@pytest.mark.parametrize("part", BAD_PARTS)
def test_a_bad_part_of_a_workload_is_refused_before_it_is_used(part, monkeypatch):
    value, said = BAD_PARTS[part]
    monkeypatch.setattr("search.workloads._factory", lambda spec: lambda: made(**{part: value}))
    refuse(lambda: get_workload("./mine.py:make"), f"workload './mine.py:make': {said}", UsageError)


def test_a_bad_name_of_a_workload_is_refused():
    refuse(
        lambda: get_workload(None),
        "a workload must be named by a string such as 'digits' or './file.py:factory', got None",
        UsageError,
    )
    refuse(lambda: get_workload("digit"), f"'digit': {MISSPELT} 'digits'", UsageError)


def test_files_that_are_absent_or_damaged_are_named(tmp_path):
    whole = encode_model(MODEL)
    refuse(lambda: read_sparse(tmp_path / "absent"), "no file", FileNotFoundError)
    refuse(lambda: read_sparse(str(tmp_path)), "no file", FileNotFoundError)
    refuse(lambda: write_sparse(MODEL, tmp_path / "absent" / "file"), "No such file", FileNotFoundError)
    for name, content in {"truncated": whole[:50], "empty": b"", "text": b"{}" * 40, "short": whole[:-9]}.items():
        (tmp_path / name).write_bytes(content)
        refuse(lambda name=name: read_sparse(str(tmp_path / name)), f"{name} does not decode", DamagedFile)
    assert write_sparse(MODEL, str(tmp_path / "good")) == len(whole)
    assert torch.equal(read_sparse(str(tmp_path / "good"))["conv0.weight"], MODEL.conv0.weight)
    with torch.no_grad():
        (kept := broken(NAN)).conv0.weight[1:] = 0
    write_sparse(kept, tmp_path / "nan")
    torch.testing.assert_close(
        read_sparse(tmp_path / "nan")["conv0.weight"], kept.conv0.weight.detach(), equal_nan=True
    )


def test_studies_that_are_absent_or_damaged_are_named(tmp_path):
    refuse(lambda: load_front("mine", tmp_path), "unknown study 'mine': there is none yet", UsageError)
    refuse(lambda: load_front(None, tmp_path), "got None", UsageError)
    refuse(lambda: load_front("../mine", tmp_path), "got '../mine'", UsageError)
    record = tmp_path / "mine" / "study.json"
    record.parent.mkdir()
    for content, said in {"{": "damaged", '{"version": 99}': "version is not 1", "[]": "damaged"}.items():
        record.write_text(content)
        refuse(lambda: load_front("mine", tmp_path), said, Refused)
    refuse(lambda: load_front("mime", tmp_path), f"{MISSPELT} 'mine'", UsageError)


# The command line

TINY = ("--workload", "./tiny.py:tiny")
APPLY = ("apply", "dict.json", *TINY, "--out", "never-made")


def one_line(reply, said: str, code: int = 2) -> None:
    """The exit code, one line on stderr, and nothing on stdout but, with `--json`, one object that says the same."""
    lines = [line for line in reply.err.splitlines() if line.startswith("prunefront: ")]
    assert len(lines) == 1 and reply.err.splitlines()[-1] == lines[0], reply.err
    assert reply.code == code and said in lines[0] and "unexpected" not in lines[0], reply.err
    assert not re.search("Traceback|pydantic|Input should", reply.err)
    if reply.out:
        assert json.loads(reply.out) == {"error": lines[0].removeprefix("prunefront: "), "exit_code": code}
        assert reply.out.count("\n") == 1


def in_toml(value: object) -> str:
    return (
        json.dumps(list(value) if isinstance(value, tuple) else value).replace("NaN", "nan").replace("Infinity", "inf")
    )


@pytest.mark.parametrize("option", [*BAD_OPTIONS, "max_macs", "max_latency"])
def test_a_bad_option_ends_a_search_before_it_begins(main, tmp_path, option):
    """From a STUDY.toml in the same words; on the command line, where every value is text, naming option and value."""
    name, file = option.replace("_", "-"), tmp_path / "study.toml"
    for value, said in BAD_OPTIONS.get(option, BAD_LIMITS).items():
        for key in (name, option):
            file.write_text(f"{key} = {in_toml(value)}")
            one_line(main("search", file), said.replace("max_size", "max-size"))
        if isinstance(value, str | int | float) and said not in (
            "root must be text, got 5",
            "study must be text, got 5",
            "got '8'; nearest valid: 8",
        ):
            reply = main("search", f"--{name}={value}", "--root", tmp_path / "root", "--json")
            one_line(reply, name)
            assert reply.out and (option not in SearchConfig.model_fields or str(value).split(",")[0][:99] in reply.err)
    assert not (tmp_path / "root").exists()


COMMANDS = {
    # what is no command, and what none has
    "unknown": (["serach"], "status, verify, ...); see prunefront --help"),
    "unknown, and an unknown option": (
        ["serach", "--max-sise", "0.1"],
        "unknown command 'serach': did you mean 'search'",
    ),
    "quote": (["it's"], 'unknown command "it\'s"'),
    "no study": (["status"], "STUDY"),
    "option": (
        ["search", "--max-sise", "0.1"],
        f"unknown option '--max-sise': {MISSPELT} '--max-size'? ",
    ),
    "option's command": (["search", "--trails", "3"], "see prunefront search --help"),
    "no abbreviation": (["search", "--trial", "3"], "option '--trial': did you mean '--trials'"),
    "option with its value": (["search", "--max-sise=0.1"], "option '--max-sise'"),
    "one dash": (["search", "-max-size", "0.1"], "option '-max-size': did you mean '--max-size'"),
    "option of front": (["front", "--fromat", "csv"], "option '--fromat': did you mean '--format'"),
    "said before --out is missed": (["export", "tiny", "--trail", "3"], "option '--trail': did you mean '--trial'"),
    "too many": (["status", "tiny", "other"], "one argument too many, 'other': leave it out; see prunefront status"),
    "workload twice": (["inspect", "digits", "--workload", "digits"], "once"),
    # workloads
    "workload": (["search", "--workload", "digit"], "'digit': did you mean 'digits'"),
    "workload of inspect": (["inspect", "digit"], "file.py:factory"),
    "factory": (["search", "--workload", "./tiny.py:tinny"], "'tinny': did you mean 'tiny'"),
    "workload's file": (["search", "--workload", "./absent.py:tiny"], "absent.py"),
    "no factory": (["search", "--workload", "./tiny.py:RECIPE"], "RECIPE"),
    "no width": (["search", *TINY, "--width", "0.5", "--study", "w"], "no parameter"),
    "leaves": (["search", "--workload", "./tiny.py:leaving"], "SystemExit"),
    "narrow": (["search", "--workload", "digits", "--width", "0.001"], "width"),
    "narrow inspect": (["inspect", "--width", "-1"], "width must be a number, > 0, got -1.0"),
    "module": (["search", "--workload", "no_such_module:factory"], "no_such_module", 3),
    "weights": (["scan", *TINY, "--weights", "absent.pt"], "absent.pt", 3),
    "weights of search": (["search", *TINY, "--study", "other", "--weights", "absent.pt"], "--weights", 3),
    "weights of inspect": (["inspect", "./tiny.py:tiny", "--weights", "absent.pt"], "absent.pt", 3),
    # further values
    "MACs of masks": (
        ["search", "--max-macs", "0.4", "--granularity", "fine-grained"],
        "MACs limit 0.4",
    ),
    "bits": (["search", "--bits", "8,33"], "bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got 33"),
    "bits, no whole number": (["search", "--bits", "3.5"], "got 3.5; nearest valid: 4"),
    "bits, no number": (["search", "--bits", "x"], "got 'x'; nearest valid: 32"),
    "no bits": (["search", "--bits", ""], "got ''; nearest valid: 32"),
    "bits in a word": (["search", "--bits", "int8"], "got 'int8'; nearest valid: 8"),
    "bits of nonzero sizes": (
        ["search", "--size-metric", "nonzero", "--bits", "8"],
        "bits must be 32 where size-metric is nonzero, which counts no fewer, got 8: leave bits out",
    ),
    "own criterion": (["search", "--criterion", "./absent.py:score"], "absent.py"),
    "width of scan": (["scan", "--width", "1/8"], "width must be a number, > 0, got '1/8'"),
    "criterion of scan": (["scan", "--criterion", "l1"], f"'l1': {MISSPELT} 'magnitude-l1'"),
    "granularity of scan": (["scan", *TINY, "--granularity", "2:5"], "unknown granularity '2:5'"),
    "front percent": (["front", "tiny", "--max-size", "25"], "0 < max-size <= 1, got 25.0; 25 % is 0.25"),
    "front percent sign": (["front", "tiny", "--max-size", "25%"], "0 < max-size <= 1, got '25%'; 25 % is 0.25"),
    "front macs": (["front", "tiny", "--max-macs", "25%"], "0 < max-macs <= 1, got '25%'; 25 % is 0.25"),
    "front latency": (["front", "tiny", "--max-latency", "0"], "0 < max-latency <= 1, got 0"),
    "front limit": (["front", "tiny", "--max-size", "small"], "0 < max-size <= 1, got 'small'"),
    "format": (["front", "tiny", "--format", "xml"], "unknown format 'xml'"),
    "ramp": ([*APPLY, "--ramp", "60%"], "ramp must be a number, got '60%'; 60 % is 0.6"),
    "start": ([*APPLY, "--start", "20"], "0 <= start < ramp, got 20.0; 20 % is 0.2; the default is 0"),
    "exponent": ([*APPLY, "--exponent", "x"], "exponent must be a number, got 'x'"),
    "exponent nan": ([*APPLY, "--exponent", "nan"], "exponent must be > 0, got nan"),
    "rounds": ([*APPLY, "--rounds", "2.5"], "rounds must be a whole number, got '2.5'"),
    "seed": ([*APPLY, "--seed", "many"], "seed must be a whole number, >= 0 and < 2147483648, got 'many'"),
    "seed below": ([*APPLY, "--seed", "-1"], "seed must be a whole number, >= 0"),
    "granularity of apply": ([*APPLY, "--granularity", "chanel"], f"'chanel': {MISSPELT} 'channel'"),
    "round": ([*APPLY, "--round-to", "0"], "round-to must be a whole number, >= 1 and <= 1024, got 0"),
    "port": (["view", "--port", "80.5"], "--port must be a whole number, 1 <= port <= 65535, got '80.5'"),
    "port above": (["view", "--port", "70000"], "got 70000"),
    "port below": (["view", "--port", "0"], "got 0"),
    # studies, files and folders
    "study of front": (["front", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of status": (["status", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of report": (["report", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of export": (["export", "tinny", "--out", "never-made"], "'tinny': did you mean 'tiny'"),
    "out": (["export", "tiny"], "--out"),
    "trial": (["export", "tiny", "--out", "never-made", "--trial", "worst"], "'worst'"),
    "baseline": (
        ["export", "tiny", "--out", "never-made", "--trial", "baseline:lmap"],
        "unknown baseline 'lmap': did",
    ),
    "criterion of export": (["export", "tiny", "--out", "never-made", "--criterion", "taylor"], "'magnitude-l2'"),
    "study file": (["search", "absent.toml"], "no study file 'absent.toml'"),
    "file": (["apply", "absent.json", *TINY, "--out", "never-made"], "no file 'absent.json'"),
    "no policy": (["apply", "tiny.py", *TINY, "--out", "never-made"], "not valid JSON"),
    "no workload": (["apply", "dict.json", "--out", "never-made"], "--workload"),
    "file as export": (["export", "tiny", "--out", "tiny.py"], "tiny.py"),
    "file as folder": (["apply", "half.json", *TINY, "--out", "tiny.py"], "tiny.py"),
    "file as scan": (["scan", *TINY, "--out", "tiny.py"], "tiny.py"),
    "file as pictures": (["inspect", "./tiny.py:tiny", "--out", "tiny.py"], "tiny.py"),
    "absent export": (["verify", "absent"], "'absent' is not an export"),
    "no export": (["verify", "tiny.py"], "manifest.json"),
    "own export": (["verify", "best"], "--workload"),
    "factory of verify": (["verify", "best", "--workload", "./tiny.py:tinny"], "'tinny': did you mean 'tiny'"),
    "data of verify": (["verify", "best", "--workload", "./tiny.py:with_data"], "data"),
}
"""Words -> what is said of them, and the exit code if it is not 2."""


@pytest.fixture
def files(place):
    (place / "dict.json").write_text('{"conv1.weight": 0.0001}')
    (place / "half.json").write_text('{"conv1.weight": 0.5}')
    return place


@table(COMMANDS)
def test_a_bad_command_ends_in_one_line(main, exported, files, case):
    words, said, *code = case
    reply = main(*words, "--json")
    assert reply.out
    one_line(reply, said, *code)
    assert not (files / "never-made").exists() and [path.name for path in files.glob("mlruns/*/study.json")] == [
        "study.json"
    ]


BARE = {
    "nothing": ([], "COMMAND"),
    "option before": (
        ["--root", "x", "search"],
        "'--root' belongs after the COMMAND, as in 'prunefront search --root ...'; see",
    ),
    "option": (["--vers"], "'--vers'"),
    "no study": (["front"], "STUDY"),
    "parser": (["search", "--max-size", "25%"], "25 % is 0.25"),
    "file": (["scan", *TINY, "--weights", "absent.pt"], "absent.pt", 3),
}


@table(BARE)
def test_without_json_nothing_is_on_stdout(main, place, case):
    words, said, *code = case
    reply = main(*words)
    one_line(reply, said, *code)
    assert reply.out == ""


def test_apply_says_why_nothing_would_go(main, files, tmp_path):
    words = ["--root", tmp_path / "root", *TINY, "--out", tmp_path / "out"]
    for options, said in (
        ([], "'conv1.weight' stays whole (0.0001 of 1,152 units rounds to none)"),
        (["--granularity", "channel"], "'conv1.weight' stays whole (0.0001 of 16 units rounds to none)"),
    ):
        reply = main("apply", "dict.json", *words, *options)
        one_line(reply, f"dict.json: nothing to remove: {said}: ask for a larger share, or of another layer")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "root").glob("cache/dense-*"))


def test_a_trial_of_nothing_fails_with_the_reason_before_training():
    from search.training.evaluate import PreparedModel, evaluate_policy

    subject = PreparedModel(replace(made(), recipe=Recipe(batch=2, trial_epochs=1)), MODEL, GRAPH)
    steps: list[int] = []
    for policy, reason in (
        (PruningPolicy({"conv0.weight": 0.001}), "0.001 of 72 units rounds to none"),
        (PruningPolicy({"classifier.weight": 0.5}, "channel"), "its outputs are the network's outputs"),
    ):
        result = evaluate_policy(subject, policy, 1, 0, lambda *counts: steps.append(1)).result
        assert (result.state, result.reason) == (
            "failed", f"refused: nothing to remove: {next(iter(policy.sparsity))!r} stays whole ({reason}): "
            "ask for a larger share, or of another layer",
        )  # fmt: skip
    assert not steps and evaluate_policy(subject, PruningPolicy({}), 1, 0).result.state == "complete"


NO_SHARE = "nothing to remove: it gives no layer a sparsity above 0, such as 0.5; --bits 8 rounds whole layers"
POLICIES = {
    "empty": ("{}", NO_SHARE),
    "unknown": ('{"conv0.wieght": 0.5}', "unknown layer 'conv0.wieght': did you mean 'conv0.weight'"),
    "prefixed": ('{"module.conv0.weight": 0.5}', "'module.conv0.weight': did you mean 'conv0.weight'"),
    "not prunable": ('{"bn0.weight": 0.5}', "'bn0.weight'"),
    "above": ('{"conv0.weight": 1.2}', "sparsity of 'conv0.weight' must satisfy 0 <= sparsity < 1, got 1.2"),
    "all": ('{"conv0.weight": 1.0}', "got 1.0; nearest valid: 0.99"),
    "below": ('{"conv0.weight": -0.1}', "got -0.1; nearest valid: 0.0"),
    "nan": ('{"conv0.weight": NaN}', "NaN is not a valid number here"),
    "infinity": ('{"conv0.weight": Infinity}', "Infinity is not a valid number here"),
    "text": ('{"conv0.weight": "0.5"}', "sparsity of 'conv0.weight' must be a number"),
    "true": ('{"conv0.weight": true}', "got True"),
    "null": ('{"conv0.weight": null}', "got None"),
    "list": ("[0.5]", "must be a JSON object, got list"),
    "truncated": ("{", "not valid JSON"),
    "no byte": ("", "not valid JSON"),
    "version": ('{"version": 9, "sparsity": {}}', "policy version must be 1, got 9"),
    "key": ('{"version": 1, "sparsity": {}, "granularty": "channel"}', "'granularty': did you mean 'granularity'"),
    "all zero": ('{"conv0.weight": 0.0, "conv1.weight": 0}', NO_SHARE),
    "denormal": ('{"conv1.weight": 5e-324}', "nothing to remove: 'conv1.weight' stays whole"),
    "unknown, granularity only": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "granularity": {"conv1.wieght": "channel"}}',
        f"unknown layer 'conv1.wieght': {MISSPELT} 'conv1.weight'",
    ),
    "without end": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "schedule": {"kind": "iterative", "rounds": 1000000000}}',
        "schedule rounds must be at most 1000, got 1000000000",
    ),
    "steep": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "schedule": {"kind": "polynomial", "exponent": 1e308}}',
        "schedule exponent must be at most 1000, got 1e+308",
    ),
    "nested": ("[" * 10_000, "nested too deeply"),
    "nested objects": ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
    "long number": ('{"conv1.weight": ' + "9" * 100_000 + "}", "a number of 100000 digits is not valid here"),
    "long name": (json.dumps({"x" * 10**6: 0.25}), "unknown layer 'xxx"),
    "many names": (json.dumps({f"x{n}": 0.25 for n in range(200_000)}), "unknown layer 'x0'"),
    "surrogate": ('{"\\ud800": 0.25}', "unknown layer '\\ud800'"),
    "escapes": ('{"\\u001b[2K\\r": 0.25}', "unknown layer '\\x1b[2K\\r'"),
    "not text": ("\udcff", "it is not a text file in UTF-8 (byte 0)"),
    "twice": ('{"a": 0.25, "a": 0.5}', "duplicate key 'a': keep one of them"),
    "infinite": ('{"conv1.weight": 1e999}', "got inf"),
}


@table(POLICIES)
def test_a_policy_file_is_refused_at_once(main, place, tmp_path, case):
    content, said = case
    (place / "policy.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    reply = main("apply", "policy.json", "--root", tmp_path / "root", *TINY, "--out", tmp_path / "out")
    one_line(reply, said)
    assert "policy.json" in reply.err and len(reply.err) < 5000
    assert not (tmp_path / "out").exists() and not (tmp_path / "root" / "cache").exists()


def test_a_policy_with_a_byte_order_mark_is_read(main, place, tmp_path):
    (place / "policy.json").write_bytes(b'\xef\xbb\xbf{"conv9.weight": 0.25}')
    reply = main("apply", "policy.json", "--root", tmp_path / "root", *TINY, "--out", tmp_path / "out")
    one_line(reply, "unknown layer 'conv9.weight'")


STUDY_FILES = {
    "key": ("max-sise = 0.3", "unknown key 'max-sise': did you mean 'max-size'"),
    "key with _": ("max_sise = 0.3", "unknown key 'max_sise': did you mean 'max-size'"),
    "both spellings": ("max-size = 0.3\nmax_size = 0.2", "key 'max-size' is given twice"),
    "twice": ("trials = 3\ntrials = 4", "not valid TOML"),
    "section": ("[search]\ntrials = 3", "unknown key 'search'"),
    "true trials": ("trials = true", "trials must be a whole number, >= 1, got true"),
    "true width": ("width = true", "width must be a number, > 0, got true"),
    "false study": ("study = false", "study must be text, got false"),
    "digits": ("trials = " + "9" * 5000, "not valid TOML: Exceeds the limit (4300 digits)"),
    "nested": ("a = " + "[" * 5000, "nested too deeply"),
    "nul": ('root = "a\\u0000"', "root holds a NUL character, got 'a\\x00'"),
    "not text": ("\udcff", "it is not a text file in UTF-8"),
    "date": ("trials = 1979-05-27", "trials must be a whole number, >= 1, got datetime.date(1979, 5, 27)"),
    "infinite": ("max-size = 1e999", "got inf"),
    "escapes": ('study = "\\u001b[2K"', r"got '\x1b[2K'"),
}


@table(STUDY_FILES)
def test_a_study_file_is_refused_at_once(main, tmp_path, case):
    content, said = case
    (tmp_path / "study.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    one_line(main("search", tmp_path / "study.toml"), said)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(main, tmp_path, make):
    make(tmp_path / "pipe")
    for words in (["search", tmp_path / "pipe"], ["apply", tmp_path / "pipe", *TINY, "--out", tmp_path / "out"]):
        reply = main(*words)
        one_line(reply, "it is a folder, pipe or device, not a file")
