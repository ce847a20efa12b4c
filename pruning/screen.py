"""Zero-shot scores: how far a policy's masks alone move the outputs, BatchNorm fitted, nothing trained."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.channels import ChannelGraph
from pruning.prune import prune
from spaces.policy import PruningPolicy


class Screener:
    """Scores policies on one batch of inputs without labels.

    Args:
        model: trained; stays as it is.
        graph: its traced channel groups.
        inputs: one batch (n, ...), from fit or calibration data; a few hundred examples, since each BatchNorm
            takes its statistics from this batch.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: Tensor) -> None:
        self._model, self._graph, self._inputs = model, graph, inputs

    @cached_property
    @torch.inference_mode()
    def _reference(self) -> Tensor:
        return copy.deepcopy(self._model).eval()(self._inputs)

    @torch.inference_mode()
    def divergence(self, policy: PruningPolicy) -> float:
        """Mean distance of the pruned model's outputs from the dense model's; 0 is none, larger is worse.

        For class scores (n, classes >= 2) the Kullback-Leibler divergence in nats, else the mean squared difference
        over the variance of the dense outputs. Infinite where an output is not finite.
        """
        pruned = prune(self._model, policy, graph=self._graph).eval()
        for module in pruned.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        outputs = pruned(self._inputs)
        if not torch.isfinite(outputs).all():
            return float("inf")
        return float(_distance(outputs, self._reference))


def _distance(outputs: Tensor, reference: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] >= 2:
        logs = log_softmax(outputs, dim=1), log_softmax(reference, dim=1)
        return kl_div(*logs, reduction="batchmean", log_target=True)
    return (outputs - reference).square().mean() / reference.var().clamp_min(torch.finfo(reference.dtype).tiny)
