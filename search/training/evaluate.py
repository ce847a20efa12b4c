"""From a policy to a result, which policy, workload, recipe and seed alone determine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from pruning.channels.graph import ChannelGraph, round_groups
from pruning.channels.removal import RemovalMismatch
from pruning.channels.structure import Structure
from pruning.channels.tracing import trace_channels
from pruning.cost import measure_cost
from pruning.importance.scores import ImportanceScores, defined_groups
from pruning.importance.weights import NotFiniteError
from pruning.memory import out_of_memory
from pruning.modules import prunable_weights
from search.errors import OwnCodeProblem, UsageError
from search.process.time_limit import TimedOut, limited
from search.records import (
    COMPLETE,
    DIVERGED,
    ERROR,
    FAILED,
    MEASURING,
    OUT_OF_MEMORY,
    REFUSED,
    TrialResult,
    cause_of,
)
from search.training.attempts import TIMED_OUT, reached
from search.training.examples import calibration_of
from search.training.losses import Diverged
from search.training.memory import within_memory
from search.training.stored import BrokenPromise
from search.training.train import FINE_TUNE, fine_tune, prune_only, train_fresh
from search.training.trained import Progress, Trained
from search.user_code.blame import told
from search.user_code.loading import pass_signals_on
from search.workloads.base import Workload
from search.workloads.run import TRIAL
from spaces.cost.effect import NothingToRemove, asked_layers, require_removal, unpruned_layers
from spaces.cost.footprint import Footprint, dense_footprint, footprint, relative_cost
from spaces.criteria import criterion_word
from spaces.network import Network
from spaces.policy import PruningPolicy


@dataclass(frozen=True)
class PreparedModel:
    """A workload's network, ready to be pruned: traced, its channel counts rounded, and restricted to what a criterion
    can score. It is made once for a network and handed on.

    Attributes:
        dense: the network before pruning; trained, but where only its structure counts.
        graph: its channel groups.
        scored: the criterion the graph is restricted to; None before that.
    """

    workload: Workload
    dense: nn.Module
    graph: ChannelGraph
    scored: str | None = None
    _by_criterion: dict[str, PreparedModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, workload: Workload, dense: nn.Module, round_to: int = 1) -> PreparedModel:
        """Trace the network's channel groups, which are to keep a multiple of `round_to` channels.

        Raises:
            ValueError: as `pruning.trace_channels` and `pruning.channels.graph.round_groups` do.
        """
        with within_memory(workload, "a pass of the example input"):
            return cls(workload, dense, round_groups(trace_channels(dense, workload.example_input), round_to))

    def with_weights(self, dense: nn.Module, workload: Workload | None = None) -> PreparedModel:
        """The same network with other weights, such as those it has after training, which need not be traced again.

        A `workload` is the same task with what is known by then, such as its place or the dense value of its metric.
        """
        return replace(self, dense=dense, workload=workload or self.workload, scored=None)

    def defined_for(self, criterion: str) -> PreparedModel:
        """Restricted as far as that depends on the architecture alone, as is known before any training: channel groups
        the criterion is not defined for stay unpruned.

        Raises:
            UsageError: it looks at calibration data, and the workload has none.
        """
        if criterion_word(criterion).needs_data and not self.workload.has("calibration"):
            raise UsageError(
                f"criterion {criterion!r} looks at calibration data, and workload {self.workload.name!r} has none: "
                "give it calibration=, or take a criterion of weights alone, such as magnitude-l2"
            )
        return replace(self, graph=defined_groups(self.graph, criterion))

    def scored_by(self, criterion: str) -> PreparedModel:
        """Restricted to what the criterion can score of the trained network: neither channel groups it is not defined
        for are pruned, nor layers it finds nothing about in the calibration data. Found once for each criterion."""
        if criterion == self.scored:
            return self
        if criterion not in self._by_criterion:
            graph = self.importance(criterion).restricted_graph
            self._by_criterion[criterion] = replace(self, graph=graph, scored=criterion)
        return self._by_criterion[criterion]

    def importance(self, criterion: str) -> ImportanceScores:
        """Scores of the network's units; what data-driven criteria look at is calibration data."""
        return ImportanceScores(self.dense, criterion, self.graph, calibration_of(self.workload))

    @property
    def network(self) -> Network:
        return self.graph.network

    @cached_property
    def dense_cost(self) -> Footprint:
        return dense_footprint(self.network)


@dataclass(frozen=True)
class Evaluation:
    """A result with the network behind it; both None when the fine-tune failed."""

    result: TrialResult
    model: nn.Module | None = None
    structure: Structure | None = None

    @property
    def network(self) -> tuple[nn.Module, Structure]:
        """Model and structure of an evaluation that did not fail; `ValueError` of one that did."""
        if self.model is None or self.structure is None:
            raise ValueError(f"the evaluation has no network, it {self.result.state}: {self.result.reason}")
        return self.model, self.structure


def evaluate_policy(
    prepared: PreparedModel,
    policy: PruningPolicy,
    epochs: float,
    seed: int,
    progress: Progress | None = None,
    training: str = FINE_TUNE,
    seconds: float | None = None,
    give_up: Callable[[], None] | None = None,
    stage: str = TRIAL,
) -> Evaluation:
    """Prune and fine-tune from the dense checkpoint, then measure; a failure is a result with a reason.

    With another `training`, the policy's network is trained from fresh weights instead, for as many epochs as that
    training takes. An evaluation longer than `seconds` fails; if it cannot be interrupted, `give_up` is called, see
    `search.process.time_limit.limited`. A training loop of the user's own is told the `stage`.

    Reasons: `diverged: ...` (NaN or infinite loss or weights), `out-of-memory` (wherever it happened), `refused: ...`
    (a policy that asks for a layer of which nothing can be removed, a removal that does not equal its mask, or a
    network larger than planned), `timed-out: ...`, `error: ...` (anything that the workload's own code raised,
    including `sys.exit`).
    """
    at = [0, 0]

    def trained(prepared: PreparedModel) -> Trained:
        def step(done: int, total: int) -> None:
            at[:] = done, total
            due()
            if progress:
                progress(done, total)

        if training == FINE_TUNE:
            return fine_tune(prepared.dense, policy, prepared.workload, prepared.graph, epochs, seed, step, stage)
        return train_fresh(prepared.dense, policy, prepared.workload, prepared.graph, training, seed, step, stage)

    try:
        with limited(seconds, give_up) as due:
            return _evaluated(prepared, policy, trained)
    except TimedOut as error:
        return failed(f"{TIMED_OUT}: {error}, {reached(*at)}")


def evaluate_untrained(prepared: PreparedModel, policy: PruningPolicy) -> Evaluation:
    """The network with all of the policy applied at once, before any training; failures as in `evaluate_policy`."""
    return _evaluated(
        prepared, policy, lambda prepared: prune_only(prepared.dense, policy, prepared.workload, prepared.graph)
    )


def _evaluated(
    prepared: PreparedModel, policy: PruningPolicy, trained: Callable[[PreparedModel], Trained]
) -> Evaluation:
    placement = prepared.workload.placement
    try:
        prepared = prepared.scored_by(policy.criterion)
        require_removal(asked_layers(policy), unpruned_layers(prepared.network, policy))
        found = _measured(prepared, policy, trained(prepared))
    except TimedOut:
        raise
    except BaseException as error:
        pass_signals_on(error)
        found = failed(_reason(error))
    if found.result.cause == OUT_OF_MEMORY:  # now that the error, and with it what it held, is gone
        placement.give_back_memory()
    device = None if placement.on_cpu else placement.name
    return replace(found, result=replace(found.result, device=device, precision=placement.precision))


def _reason(error: BaseException) -> str:
    if out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, Diverged | NotFiniteError):
        return f"{DIVERGED}: {error}"
    if isinstance(error, RemovalMismatch | NothingToRemove | BrokenPromise):
        return f"{REFUSED}: {error}"
    if isinstance(error, OwnCodeProblem):
        return f"{ERROR}: {error}"
    return f"{ERROR}: {told(error)}"


def failed(reason: str) -> Evaluation:
    """A failed result without a network. Only the first line of the reason is kept; its first word is the cause."""
    reason = (reason.splitlines() or [""])[0][:500]
    return Evaluation(TrialResult(FAILED, reason, cause=cause_of(reason)))


def _measured(prepared: PreparedModel, policy: PruningPolicy, trained: Trained) -> Evaluation:
    if not math.isfinite(trained.scores.accuracy):
        return failed(f"{DIVERGED}: the metric is {trained.scores.accuracy}")
    began = time.perf_counter()
    cost = measure_cost(trained.model, prepared.workload.example_input)
    if trained.file:
        cost = replace(cost, encoded_bytes=trained.file.bytes)
    planned = footprint(prepared.network, policy)
    if cost.encoded_bytes > planned.encoded_bytes or cost.macs > planned.macs:  # products of no layer may shrink too
        raise BrokenPromise(f"the network costs {cost}, its policy promised {planned}")
    result = TrialResult(
        state=COMPLETE,
        accuracy=trained.scores.accuracy,
        loss=trained.scores.loss,
        shares=relative_cost(cost, prepared.dense_cost),
        achieved=_achieved(prepared, policy, trained.model),
        curve=trained.curve,
        seconds={
            "training": trained.seconds_training,
            "scoring": trained.seconds_scoring,
            "measuring": time.perf_counter() - began + trained.seconds_writing,
        },
        statistics=trained.statistics,
        measuring=MEASURING,
        file=trained.file,
        rate=trained.rate,
        restored=trained.restored,
        ended_at=trained.ended_at,
    )
    return Evaluation(result, trained.model, trained.structure)


def _achieved(prepared: PreparedModel, policy: PruningPolicy, model: nn.Module) -> Mapping[str, float]:
    """Layer -> share of its own units gone, read back from shapes and zeros."""
    achieved = {}
    dense = prepared.network.by_name
    for name, weight in prunable_weights(model).items():
        if policy.granularity_of(name) == "channel":
            dim = dense[name].output_dim
            achieved[name] = 1 - weight.shape[dim] / dense[name].shape[dim]
        else:
            achieved[name] = float((weight == 0).float().mean())
    return achieved
