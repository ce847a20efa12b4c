"""Masks at the edge are exact; what is no weight, share, score or mask is refused in one line."""

from __future__ import annotations

import math

import torch
from refusals import MISSPELT, refuse, table
from small_net import MODEL
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning import apply_masks_, from_torch_prune, make_mask, to_torch_prune

NAN, INF = math.nan, math.inf
WEIGHT = torch.tensor([[3.0, -1.0, 2.0], [0.5, -4.0, 1.5], [0.1, 0.2, -0.3], [6.0, 5.0, 7.0]])


def half_masked() -> nn.Module:
    layer = nn.Linear(2, 2)
    torch_prune.identity(layer, "weight")
    layer.weight_mask.fill_(0.5)
    return layer


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
