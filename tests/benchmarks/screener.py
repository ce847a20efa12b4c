"""Zero-shot scores: how far a policy's masks alone move the outputs, BatchNorm fitted, nothing trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.channels.graph import ChannelGraph
from pruning.channels.structure import apply_structure
from pruning.copying import copy_model
from pruning.mask_cache import MaskCache
from pruning.masks import apply_masks_
from spaces.policy import PruningPolicy

SLICES = (0.25, 0.5, 1.0)
"""Shares of the batch that many policies are compared on, one after the other."""


@dataclass(frozen=True)
class Divergence:
    """A policy's score among many.

    Attributes:
        value: as `Screener.divergence` gives it on these examples.
        examples: how many of the batch it was taken on; scores of unequal ones are not comparable.
    """

    value: float
    examples: int


class Screener:
    """Scores policies on one batch of inputs without labels.

    What a policy is scored depends on its sparsity, granularity, removal and criterion, is computed once, and
    is the same whatever was scored before. For modules whose outputs depend on input, parameters and buffers.

    Args:
        model: trained; stays as it is, and must not change while this is in use.
        graph: its traced channel groups.
        inputs: one batch (n, ...), from fit or calibration data, in no order; a few hundred examples, since
            each BatchNorm takes its statistics from this batch.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: Tensor) -> None:
        self._rankings = MaskCache(model, graph)
        dense = copy.deepcopy(model).eval()
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            self._reference = dense(inputs)
        for module in dense.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        self._inputs, self._dense = inputs, dense
        self._known: dict[tuple[object, int], float] = {}

    def divergence(self, policy: PruningPolicy) -> float:
        """Mean distance of the pruned model's outputs from the dense model's; 0 is none, larger is worse.

        For class scores (n, classes >= 2) the Kullback-Leibler divergence in nats, else the mean squared difference
        over the variance of the dense outputs. Infinite where an output is not finite.

        Raises:
            ValueError: the policy names a weight that is not prunable (nearest match named), or NaN weights.
        """
        return self._divergence(policy, len(self._inputs))

    def divergences(self, policies: Sequence[PruningPolicy]) -> list[Divergence]:
        """Scores of many policies for the price of few: all on a quarter of the batch, the better half of them
        (rounded up) on half of it, and the better half of those on all of it.

        Slices are the batch's first examples, at least two. Returns one score a policy, in their order, from
        the largest slice it reached; raises as `divergence` does.
        """
        found: dict[int, Divergence] = {}
        left = list(range(len(policies)))
        for share in SLICES:
            examples = min(max(2, math.ceil(share * len(self._inputs))), len(self._inputs))
            found |= {number: Divergence(self._divergence(policies[number], examples), examples) for number in left}
            left = sorted(left, key=lambda number: found[number].value)[: math.ceil(len(left) / 2)]
        return [found[number] for number in range(len(policies))]

    def _divergence(self, policy: PruningPolicy, examples: int) -> float:
        key = _content(policy), examples
        if key not in self._known:
            self._known[key] = self._computed(policy, examples)
        return self._known[key]

    @torch.inference_mode()
    def _computed(self, policy: PruningPolicy, examples: int) -> float:
        masks, structure = self._rankings.masks(policy), self._rankings.structure(policy)
        masked = copy_model(self._dense)
        apply_masks_(masked, masks)
        with torch.random.fork_rng(devices=[]):
            pruned = apply_structure(masked, structure) if structure.kept else masked  # smaller is faster, no closer
            outputs = pruned(self._inputs[:examples])
        value = float(_distance(outputs, self._reference[:examples]))
        return value if torch.isfinite(outputs).all() and math.isfinite(value) else math.inf


def _content(policy: PruningPolicy) -> object:
    """What of a policy decides its masks."""
    asked = {name: share for name, share in policy.sparsity.items() if share > 0}
    masked = frozenset((name, share, policy.granularity_of(name)) for name, share in asked.items())
    return policy.criterion, masked, frozenset((n, share) for n, share in policy.removal.items() if share > 0)


def _distance(outputs: Tensor, reference: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] >= 2:
        logs = log_softmax(outputs, dim=1), log_softmax(reference, dim=1)
        return kl_div(*logs, reduction="batchmean", log_target=True)
    return (outputs - reference).square().mean() / reference.var().clamp_min(torch.finfo(reference.dtype).tiny)
