"""Sensitivity scan: loss and accuracy against sparsity and against value bits, one layer at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import examples_at_once
from pruning.batchnorm import learning_norms, recalibrate_
from pruning.calibration import Calibration, evenly_spaced
from pruning.channels.graph import ChannelGraph, check_fits
from pruning.copying import copy_model
from pruning.devices import device_of
from pruning.file.rounding import round_weight
from pruning.importance.scores import ImportanceScores
from pruning.mask_cache import MaskCache
from pruning.masks import apply_masks_
from pruning.modules import output_dim, prunable_weights
from pruning.outputs import join_batches, on_cpu
from pruning.trees import NetworkInputs, contents, run
from spaces.bits import FLOAT_BITS, check_bits
from spaces.cost.effect import NothingToRemove, achieved, require_removal
from spaces.granularity import GRANULARITIES, Units, pattern_of, unpruned_reason
from spaces.policy import PruningPolicy
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint
from spaces.validation import check_sparsity, unknown

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99)
"""Sparsities scanned: even steps in the logarithm of what is kept, where damage begins to bend."""
BRIEF_LEVELS = LEVELS[1], LEVELS[3], LEVELS[4], LEVELS[6]
"""Of a brief scan: the four between which damage at the others is interpolated best."""
BITS = (8, 6, 4, 3, 2)
"""Value bits scanned where none are asked for: those between lose between."""
SCAN_EXAMPLES = 1000
"""Examples scored at most: a scan ranks layers and levels, whose losses lie far apart."""
SCAN_BATCH = 500
"""Examples a forward pass at most, and fewer of large ones (see `examples_at_once`); the data is cut into equal parts,
each one BatchNorm statistic."""
DEEP = 32
"""Layers above which a brief scan is enough to begin with: the time a whole one takes grows with their square."""
BRIEF_PASSES = 20_000
"""Examples that a brief scan passes through the network, over all its points: fewer than seven epochs of training on
1,000 examples do, where a step counts as three passes."""
LEAST_EXAMPLES = 32
"""In a brief scan, of however many points."""
HARM = 0.01
"""Accuracy that recalibrating the dense model may cost, or one example's if that is more: else examples are too few."""
BRIEF_HARM = 0.1
"""Likewise in a brief scan, on whose few examples a point of accuracy is chance: what layers lose without recalibration
is several times what they lose with it, and ranks them differently."""

ROUNDING = "rounding"
PointKey = tuple[str, str, float]
"""Of a point: granularity, first of the layers pruned together, level asked for; or `ROUNDING`, layer, bits."""
Point = ProfilePoint | RoundingPoint
_Scores = tuple[float, float]
"""Loss and metric."""


def scan_sensitivity(
    model: nn.Module,
    graph: ChannelGraph,
    data: tuple[NetworkInputs, Any] | None,
    loss: Callable[[Any, Any], Tensor],
    metric: Callable[[Any, Any], float],
    granularities: Sequence[str] = ("fine-grained", "channel"),
    criterion: str = "magnitude-l2",
    levels: Sequence[float] = LEVELS,
    fingerprint: str = "",
    progress: Callable[[int, int], None] | None = None,
    known: Mapping[PointKey, Point] | None = None,
    keep: Callable[[PointKey, Point], None] | None = None,
    bits: Sequence[int] = (),
    score: Callable[[nn.Module], tuple[float, float]] | None = None,
    brief: bool = False,
    only: Collection[PointKey] | None = None,
) -> Profile:
    """Prune each layer alone to each level, one-shot, and score the model with and without recalibration; with `bits`,
    round each prunable layer alone to each of them too.

    A brief scan takes as many examples as make `BRIEF_PASSES` in all, where each layer is rounded once, and scores each
    point in the pass that recalibrates; `BRIEF_LEVELS` are enough for it.

    The dense model is scored both ways too. Where recalibrating already hurts it, by more than `HARM` or `BRIEF_HARM`,
    the examples are too few, and the points are scored without.

    Channels are masked, not removed: the outputs are the same. Channel groups are scanned once, as a whole,
    and reported for each of their layers; layers that cannot be pruned in a granularity are left out of it.
    Channel groups the criterion is not defined for are left out.

    Args:
        model: trained; stays as it is.
        graph: its traced channel groups.
        data: calibration inputs (n, ...) and targets (n, ...), each a tensor or a `Tree`, on any device; of more than
            `SCAN_EXAMPLES`, 1000, that many evenly spaced ones are used. None, with a `score` and a criterion of
            weights alone: nothing is recalibrated then.
        loss: (outputs, targets) -> scalar; of all the examples used at once.
        metric: (outputs, targets) -> float in [0, 1].
        levels: sparsities, at least one, each in [0, 1); the achieved ones are reported, of patterns `N:M` each once.
        fingerprint: kept in the profile, to tell whose it is.
        progress: called with (points done, points in all).
        known: points of the same scan, interrupted before; they are not scored again.
        keep: called with every point that is scored, before `progress`.
        bits: of a value, each one of `spaces.bits.BITS` in any order; 32, which rounds nothing, is no point.
        score: (model) -> loss and metric, in place of those of `data`, which then serves to recalibrate alone.
        brief: whether to scan briefly.
        only: keys of the points that are wanted, see `scan_keys`; the profile then holds no others. None wants all.

    Raises:
        ValueError: unknown words, a level outside [0, 1) or none, bits that no weight can have, NaN or infinite
            weights, no data, or inputs and targets of unequal length.
        NothingToRemove: nothing of any layer can go in these granularities; the first are named with their reasons.
    """
    began = time.perf_counter()
    _check_scan(granularities, levels, data, score is not None)
    widths = sorted({check_bits(own) for own in bits} - {FLOAT_BITS}, reverse=True)
    check_fits(model, graph.network)
    dense = copy_model(model).eval()
    calibration = None if data is None else Calibration(*data, loss).on(device_of(model, data[0]))
    importance = ImportanceScores(dense, criterion, graph, calibration)
    graph = importance.restricted_graph
    require_subjects(graph, granularities)
    subjects = [(g, names) for g in granularities for names in _subjects(graph, g)]
    keys = scan_keys(graph, granularities, levels, widths)
    pruning_points = sum(granularity != ROUNDING for granularity, _, _ in keys)
    most = SCAN_EXAMPLES
    if brief:  # as many examples, however many bits are asked for
        most = min(most, max(LEAST_EXAMPLES, BRIEF_PASSES // (pruning_points + len(graph.network.layer_names))))
    batches, targets = _batches(dense, data, most)
    wanted = contents(targets)

    def of_outputs(parts: list[Any]) -> _Scores:
        outputs = join_batches(parts, [len(batch) for batch in batches])
        return float(loss(outputs, wanted)), float(metric(on_cpu(outputs), on_cpu(wanted)))

    def scores_of(candidate: nn.Module) -> _Scores:
        return of_outputs([run(candidate, batch) for batch in batches]) if score is None else score(candidate)

    scorer = _Scorer(dense, batches, scores_of, of_outputs if score is None else None, brief)
    rankings = MaskCache(dense, graph, calibration, importance)

    wanted_keys = keys if only is None else [key for key in keys if key in only]
    done, points_in_all = 0, len(wanted_keys)

    def point_of(key: PointKey, score: Callable[[], Point]) -> Any:
        nonlocal done
        point = (known or {}).get(key)
        if point is None:
            point = score()
            if keep:
                keep(key, point)
        done += 1
        if progress:
            progress(done, points_in_all)
        return point

    def pruned(granularity: str, names: Sequence[str], level: float) -> ProfilePoint:
        policy = PruningPolicy(dict.fromkeys(names, level), granularity, criterion=criterion)
        masks = rankings.masks(policy)
        plain, recalibrated = scorer.scores(lambda candidate: apply_masks_(candidate, masks))
        return ProfilePoint(achieved(graph.network, policy)[names[0]], *plain, *recalibrated)

    def rounded(layer: str, width: int) -> RoundingPoint:
        plain, recalibrated = scorer.scores(lambda candidate: _round_(candidate, layer, width))
        return RoundingPoint(width, *plain, *recalibrated)

    points: dict[str, dict[str, tuple[ProfilePoint, ...]]] = {granularity: {} for granularity in granularities}
    for granularity, names in subjects:
        row = tuple(
            point_of(key, partial(pruned, granularity, names, key[2]))
            for key in wanted_keys
            if key[:2] == (granularity, names[0])
        )
        points[granularity].update(dict.fromkeys(names, row))
    rounding = {
        layer: tuple(
            point_of(key, partial(rounded, layer, int(key[2]))) for key in wanted_keys if key[:2] == (ROUNDING, layer)
        )
        for layer in (graph.network.layer_names if widths else ())
    }
    seconds = time.perf_counter() - began
    (loss_before, metric_before), (loss_after, metric_after) = scorer.dense, scorer.recalibrated or (None, None)
    return Profile(
        fingerprint, sum(map(len, batches)), loss_before, metric_before, points, seconds,
        loss_after, metric_after, scorer.too_few, rounding, brief,
    )  # fmt: skip


def scan_keys(
    graph: ChannelGraph, granularities: Sequence[str], levels: Sequence[float] = LEVELS, bits: Sequence[int] = ()
) -> list[PointKey]:
    """The points of a scan of these, in its order; `graph` is restricted to what the criterion is defined for."""
    pruned = [
        (granularity, names[0], level)
        for granularity in granularities
        for names in _subjects(graph, granularity)
        for level in _distinct(levels, granularity)
    ]
    widths = sorted({*bits} - {FLOAT_BITS}, reverse=True)
    return pruned + [(ROUNDING, layer, width) for layer in graph.network.layer_names for width in widths]


class _Scorer:
    """Scores one network with changed weights, plainly and after BatchNorm recalibration.

    Attributes:
        dense: scores without a change.
        recalibrated: likewise, after recalibration; None for a network without BatchNorm.
        too_few: whether the examples are too few to recalibrate by, so that it is left out.
    """

    def __init__(
        self,
        dense: nn.Module,
        batches: Sequence[NetworkInputs],
        score: Callable[[nn.Module], _Scores],
        of_outputs: Callable[[list[Any]], _Scores] | None,
        brief: bool,
    ) -> None:
        self._model, self._batches, self._score, self._brief = dense, batches, score, brief
        self._of_outputs = of_outputs if brief else None
        self.dense = self._plainly(copy_model(dense))
        self.recalibrated, self.too_few = self._recalibrated_dense()
        self._recalibrates = self.recalibrated is not None and not self.too_few

    def _recalibrated_dense(self) -> tuple[_Scores | None, bool]:
        """Its scores, and whether recalibration hurts it."""
        model, examples = copy_model(self._model), sum(map(len, self._batches))
        if not learning_norms(model) or not examples:
            return None, False
        if examples == 1:  # of which a norm may know no variance
            return None, True
        bearable = max(BRIEF_HARM if self._brief else HARM, 1.5 / examples)
        scores, least = self._recalibrated_scores(model), self.dense[1] - bearable
        if scores is None:
            return None, False
        return scores, not (math.isfinite(scores[0]) and scores[1] >= least)

    def scores(self, change_: Callable[[nn.Module], None]) -> tuple[_Scores, _Scores]:
        """Loss and metric of a copy that `change_` changed, without recalibration, of which a brief scan does without,
        and with."""
        candidate = copy_model(self._model)
        change_(candidate)
        if not self._recalibrates:
            plain = self._plainly(candidate)
            return plain, plain
        if self._brief:
            return (math.nan, math.nan), self._recalibrated_scores(candidate) or self._plainly(candidate)
        plain = self._plainly(candidate)
        return plain, self._recalibrated_scores(candidate) or plain

    @torch.no_grad()
    def _plainly(self, candidate: nn.Module) -> _Scores:
        return self._score(candidate)

    @torch.no_grad()
    def _recalibrated_scores(self, candidate: nn.Module) -> _Scores | None:
        """After recalibrating it; None if that moves nothing. A brief scan scores the outputs of the same pass,
        unless the user scores networks.
        """
        outputs: list[Any] = []
        if not recalibrate_(candidate, self._batches, outputs.append if self._of_outputs else None):
            return None
        return self._of_outputs(outputs) if self._of_outputs else self._plainly(candidate)


def _batches(
    dense: nn.Module, data: tuple[NetworkInputs, Any] | None, most: int
) -> tuple[Sequence[NetworkInputs], Any]:
    """Inputs of at most so many examples in batches, and all their targets; none of no data."""
    if data is None:
        return (), ()
    device = device_of(dense, data[0])
    inputs, targets = (evenly_spaced(part, most).to(device) for part in data)
    parts = math.ceil(len(inputs) / examples_at_once(dense, inputs, SCAN_BATCH))
    if parts > 1:  # mixed, so that no batch is of one class where examples are sorted by it
        mixed = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(device)
        inputs, targets = inputs[mixed], targets[mixed]
    return inputs.tensor_split(parts), targets


@torch.no_grad()
def _round_(model: nn.Module, layer: str, bits: int) -> None:
    """Round one weight as its file stores it, in place."""
    weight = prunable_weights(model)[layer]
    dim = output_dim(model.get_submodule(layer.rpartition(".")[0]))
    weight.copy_(round_weight(weight, bits, dim=dim).weight(weight.dtype))


def known_points(profile: Profile, levels: Sequence[float] = LEVELS) -> dict[PointKey, Point]:
    """The points of a profile by the keys that a scan at the same levels knows them by."""
    found: dict[PointKey, Point] = {}
    for granularity, by_layer in profile.points.items():
        asked = _distinct(levels, granularity)
        for layer, points in by_layer.items():
            if len(points) == len(asked):
                found |= {(granularity, layer, level): point for level, point in zip(asked, points, strict=True)}
    for layer, rounded in profile.rounding.items():
        found |= {(ROUNDING, layer, point.bits): point for point in rounded}
    return found


def _distinct(levels: Sequence[float], granularity: str) -> Sequence[float]:
    """The levels, or of a pattern those it can tell apart."""
    pattern = pattern_of(granularity)
    if pattern is None:
        return levels
    units = Units(pattern.of, 1, pattern.keep)
    return sorted({units.removed(level) / pattern.of for level in levels} - {0.0})


def require_subjects(graph: ChannelGraph, granularities: Sequence[str]) -> None:
    """Raise `NothingToRemove` if every layer stays unpruned in all these granularities."""
    if not any(_subjects(graph, granularity) for granularity in granularities):
        unpruned = {x.name: unpruned_reason(x, granularities[0]) or "" for x in graph.network.prunable}
        require_removal(unpruned, unpruned)
        raise NothingToRemove("nothing to remove: the network has no convolution and no linear layer")


def _check_scan(
    granularities: Sequence[str], levels: Sequence[float], data: tuple[NetworkInputs, Any] | None, scored: bool
) -> None:
    if isinstance(granularities, str) or not granularities:
        raise ValueError(f"granularities must be one or more words in a sequence, got {granularities!r}")
    for word in granularities:
        if word not in GRANULARITIES:
            raise ValueError(unknown("granularity", word, GRANULARITIES))
    if not len(levels):
        raise ValueError(f"levels must be one or more sparsities, got none; the default is {LEVELS}")
    for level in levels:
        check_sparsity(level, "level")
    if data is None:
        if not scored:
            raise ValueError("data is None: give inputs and targets, or a score= that needs none")
    elif len(data[0]) != len(data[1]) or not len(data[0]):
        raise ValueError(f"data needs as many inputs as targets, at least 1, got {len(data[0])} and {len(data[1])}")


def _subjects(graph: ChannelGraph, granularity: str) -> list[tuple[str, ...]]:
    """What is pruned together in one point of the scan."""
    if granularity == "channel":
        return [group.layers for group in graph.network.groups if group.obstacle is None]
    return [(layer.name,) for layer in graph.network.prunable if not unpruned_reason(layer, granularity)]
