"""Whether the network that `build_model` returns is already trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruning.outputs import on_cpu
from pruning.trees import contents
from search.training.fingerprint import weights_fingerprint
from search.training.own_scores import scored_by_user
from search.training.scoring import predict
from search.workloads.base import Workload

EXAMPLES = 128
SHUFFLES = 5
AHEAD, LESS_ERROR = 0.5, 0.8
"""A trained network beats its shuffled copies by at least this share of the range that they span, and its error is at
most this share of the best copy's.
"""


def outperforms_shuffled(workload: Workload, model: nn.Module, metric: Callable[[object, Tensor], float]) -> bool:
    """Whether the network does its task clearly better than copies in which each weight's elements are shuffled.

    Args:
        metric: the workload's metric; NaN where it is undefined.
    """
    share = _by_user(workload) if workload.evaluate else _by_metric(workload, metric)
    own = share(model)
    others = [share(_shuffled(model, seed)) for seed in range(SHUFFLES)]
    best, worst = max(others), min(others)
    return own > best + AHEAD * (best - worst) and 1 - own <= LESS_ERROR * (1 - best)


def _by_metric(workload: Workload, metric: Callable[[object, Tensor], float]) -> Callable[[nn.Module], float]:
    inputs, targets = workload.examples("calibration").some(EXAMPLES)

    def share(network: nn.Module) -> float:
        found = metric(on_cpu(predict(network, inputs, workload.placement)), contents(targets))
        return found if found == found else 0.0

    return share


def _by_user(workload: Workload) -> Callable[[nn.Module], float]:
    def share(network: nn.Module) -> float:
        try:
            found = scored_by_user(network, "calibration", workload).accuracy
        except Exception:  # of a network that knows nothing; as by a metric
            return 0.0
        return found if found == found else 0.0

    return share


@torch.no_grad()
def _shuffled(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    shuffled = copy.deepcopy(model)
    for parameter in shuffled.parameters():
        flat = parameter.detach().flatten()
        order = torch.randperm(flat.numel(), generator=generator).to(flat.device)
        parameter.copy_(flat[order].view(parameter.shape))
    return shuffled


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks hold equal tensors under equal names."""
    return weights_fingerprint(first) == weights_fingerprint(second)
