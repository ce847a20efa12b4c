"""The end of a training: statistics averaged anew; rounded weights as their file holds them, within its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.structure import Structure
from pruning.file.limit import Fitted, encode_within
from pruning.file.stored_form import round_weights_, to_stored_form_
from pruning.file.unread import silence_unread_
from pruning.importance.weights import require_finite
from pruning.modules import prunable_weights
from search.records import WrittenFile
from search.training.refresh import refresh_statistics_
from search.weights.tensors import tensors_of
from search.workloads.base import Workload
from spaces.cost.footprint import coded_bound, footprint
from spaces.network import Network
from spaces.policy import PruningPolicy


class BrokenPromise(Exception):
    """A network costs more than its policy said before training."""


@dataclass(frozen=True)
class Finished:
    """What the end of a training found.

    Attributes:
        statistics: which running statistics the network has, see `refresh_statistics_`.
        file: of a network with rounded weights; None of others.
        seconds_writing: spent on rounding and on the file.
    """

    statistics: str | None = None
    file: WrittenFile | None = None
    seconds_writing: float = 0.0


Finish = Callable[[nn.Module, Structure], Finished]
"""Called once with the trained network and what was removed from the dense one, before the network is scored; it may
change the network in place."""


def finish_dense_(model: nn.Module, structure: Structure, workload: Workload) -> Finished:
    """Average the statistics of a dense model anew, in place."""
    return Finished(refresh_statistics_(model, workload))


def finish_(
    model: nn.Module, structure: Structure, policy: PruningPolicy, workload: Workload, graph: ChannelGraph
) -> Finished:
    """Bring a policy's trained network into its final state, in place: the one to be scored.

    Weights are rounded to the policy's bits, channels that nothing reads any more silenced, statistics averaged anew
    with these weights, and the network put into stored form. Where its file is larger than planned, its smallest
    values are given up. Without rounded weights, statistics are all there is to do.

    Args:
        graph: of the dense network; what the policy is planned to take follows from it.

    Raises:
        NotFiniteError: a weight to be rounded is NaN or infinite.
        BrokenPromise: the file is larger than planned even without any of its weights.
    """
    if not policy.is_rounded:
        return Finished(refresh_statistics_(model, workload))
    began = time.perf_counter()
    require_finite(prunable_weights(model))
    round_weights_(model, policy.bits)
    silence_unread_(model, graph, structure)
    rounding = time.perf_counter() - began
    statistics = refresh_statistics_(model, workload)
    began = time.perf_counter()
    file = _written_(model, policy, graph.network)
    return Finished(statistics, file, rounding + time.perf_counter() - began)


def _written_(model: nn.Module, policy: PruningPolicy, network: Network) -> WrittenFile:
    planned, bound = footprint(network, policy).encoded_bytes, coded_bound(network, policy)
    rounded = to_stored_form_(model, policy.bits)
    weights = prunable_weights(model)
    try:
        found = encode_within(dict(tensors_of(model)), planned, rounded, weights.keys() - rounded.keys())
    except ValueError as error:
        raise BrokenPromise(f"the policy promised {planned} bytes: {error}") from None
    if found.given_up:
        _take_(weights, found)
    return WrittenFile(len(found.content), planned, bound, found.given_up)


@torch.no_grad()
def _take_(weights: dict[str, nn.Parameter], found: Fitted) -> None:
    for name, weight in weights.items():
        weight.copy_(found.state[name])
