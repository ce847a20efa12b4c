"""The guided search: which point a study evaluates next, given the trials that have finished."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtr

from search.proposals.features import Features, Landed
from search.proposals.hypervolume import DominatedSpace, ranks
from search.proposals.pending import DRAWS, PendingPoints
from search.proposals.pool import Pool, kind_of
from search.proposals.surrogate import Prediction, Surrogate
from spaces.cost.effect import fine_tune_key
from spaces.granularity import parts_of
from spaces.policy import PruningPolicy
from spaces.search_space.batch_projection import ProjectedBatch
from spaces.search_space.projection import Projector
from spaces.search_space.space import SEED_SCHEDULE, Draft

POOL, ROUNDS, KEPT = 96, 2, 16
"""Candidates drawn; rounds of moving the best ones further; how many are moved."""
DEEP_POOL, DEEP_ROUNDS, DEEP_KEPT = 40, 2, 8
"""The same where knobs move base allocations: candidates cost more there, and more of them found nothing better."""
PARENTS, FEWEST_PARENTS = 24, 4
"""Members of the best ranks that candidates are bred from, and how many are of one granularity and bits at least."""
FEWEST = 5
"""Observations before a surrogate is fitted; until then the first drawn candidate that repeats no trial is proposed."""
AT_BEST = 4
"""One of this many proposals asks for the most accurate network within the limit, in place of volume."""
LEAST_ERROR = 1e-3
"""Errors are kept this far from 0 and 1, whose logits are infinite."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
WORST_SPEED = 1.05
"""Speed of the hypervolume's reference point, a little beyond the dense model's 1."""
BEYOND_LIMIT = 1.1
"""Size of the hypervolume's reference point, over the limit."""
CAUTION = 0.3
"""What part of a predicted deviation counts in an expected gain, and in what is drawn of pending trials: exploring pays
in longer studies than these."""
BOLDEST = 2.0
"""Candidates that ask a layer for more than this many times what any trial, or even pruning at the smallest size, has
asked of it come last: nothing is known there. What is asked is counted as (share kept)^-1/2 - 1."""
MOST_ROWS = 120
"""Most observations that a surrogate is fitted to: the front's and the latest."""


@dataclass(frozen=True)
class Observation(Landed):
    """A finished trial as the guide sees it.

    Attributes:
        error: 1 - metric on validation data; 1.0 for a trial that diverged.
        dead: whether it is no more accurate than chance; None of a trial that diverged, or if chance is unknown.
    """

    error: float
    dead: bool | None = None

    @cached_property
    def point(self) -> np.ndarray:
        """Error, log size and speed (3,)."""
        return np.array([self.error, np.log(self.size), self.speed])


@dataclass(frozen=True)
class Suggestion:
    """What to evaluate next, and why it was chosen.

    Attributes:
        params: values of all axes of the space.
        source: which part of the pool it came from.
        scores: numbers behind the choice: predicted accuracy with its interval of one deviation, expected gain.
    """

    params: Mapping[str, Any]
    source: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidates:
    """Points that may be proposed: fitted to their sizes, what `Features.asked` says of them, and their prediction."""

    batch: ProjectedBatch
    asked: np.ndarray
    prediction: Prediction

    def __add__(self, other: _Candidates) -> _Candidates:
        asked = np.concatenate([self.asked, other.asked])
        return _Candidates(self.batch + other.batch, asked, self.prediction + other.prediction)


@dataclass(frozen=True)
class _Known:
    """What trials have come to, freed of noise; while others are pending, as one draw says that they will end.

    Attributes:
        front: (n, 3) of error, log size and speed.
        dominated: the space that these dominate.
    """

    front: np.ndarray
    dominated: DominatedSpace


class GuidedProposer:
    """Proposes points of a space.

    Candidates are drawn around static allocations and the scan's, and around the best trials; a fifth of them is free
    of both. A Gaussian process predicts each candidate's error from what it asks of each layer, and knows the dense
    model's error from the start; size and speed need no prediction. Proposed is the candidate with the largest expected
    gain in dominated volume; every `AT_BEST`-th time, the one with the largest expected gain in accuracy within the
    limit. Errors of trials that are pending meanwhile are drawn from what is predicted of them, several times, and
    gains are averaged over the draws: where a good point is being evaluated, another like it gains little.

    Args:
        projector: fits every proposal to the limits of its space; its inputs, by granularity, are what is known before
            the first fine-tune.
        dense_error: 1 - metric of the dense model.
        seed: decides all draws, together with a trial's number.
        largest_error: 1 - accuracy asked for, if one was: then the smallest network within it is searched.
        chance: accuracy up to which networks are dead, if sizes at which only dead ones were found are to be left
            alone; see `least_sizes`.
        policies: of trials that finished before, by number, so that learning of these fits none of them again.
    """

    def __init__(
        self,
        projector: Projector,
        dense_error: float,
        seed: int = 0,
        largest_error: float | None = None,
        chance: float | None = None,
        policies: Mapping[int, PruningPolicy] | None = None,
    ) -> None:
        self._projector, self._space, self._seed = projector, (space := projector.space), seed
        self._pool, self._policies = Pool(space, projector.inputs), policies or {}
        self._largest_error = None if largest_error is None else _within(largest_error)
        self._least_dead_error = None if chance is None else 1 - chance
        self._features = Features(space)
        ways = sorted({"channel" in parts_of(granularity) for granularity in space.choices})
        self._dense = (
            np.array([self._features.dense(way) for way in ways]),
            np.full(len(ways), logit(_within(dense_error))),
        )
        low, high = space.size_range
        self._reference = np.array([(1 + dense_error) / 2, np.log(high * BEYOND_LIMIT), WORST_SPEED])
        self._one_size = high <= low * 1.001
        self._observed: dict[int, Observation] = {}
        self._front: list[int] = []
        self._dead_sizes: dict[str, list[float]] = {}
        self._least_alive: dict[str, float] = {}
        self._keys: dict[int, str] = {}
        self._pending = PendingPoints(projector, self._features)
        self._suggested: dict[int, Suggestion] = {}

    @property
    def _effort(self) -> tuple[int, int, int]:
        """Candidates, rounds, and how many are moved in each."""
        return (DEEP_POOL, DEEP_ROUNDS, DEEP_KEPT) if len(self._space.base_names) > 1 else (POOL, ROUNDS, KEPT)

    @cached_property
    def _smallest(self) -> np.ndarray:
        """What even pruning to the smallest size asks of each layer at the fewest bits, in each granularity
        (granularities, columns)."""
        even, smallest = np.zeros(len(self._space.knobs)), self._space.size_range[0]
        fewest = min(self._space.bits)
        drafts = [Draft("", smallest, word, even, SEED_SCHEDULE, bits=fewest) for word in self._space.usable]
        return self._features.asked(self._projector.project_batch(drafts))

    def learn(self, number: int, params: Mapping[str, Any], error: float) -> None:
        """Take note of a finished trial; a number already known is replaced, an error of NaN counts as 1."""
        replaced, point = number in self._observed, self._features.landed(self._projector, params)
        known = _within(1.0 if math.isnan(error) else error)
        self._observed[number] = Observation(**vars(point), error=known, dead=self._dead(error))
        self._keys[number] = self._key(number, params)
        if replaced:
            self._front, self._dead_sizes, self._least_alive = [], {}, {}
        for one in self._observed if replaced else (number,):
            self._join_front(one)
            self._note_size(self._observed[one])

    def _dead(self, error: float) -> bool | None:
        return None if self._least_dead_error is None or math.isnan(error) else error >= self._least_dead_error

    @property
    def least_sizes(self) -> dict[str, float]:
        """By kind (`search.proposals.pool.kind_of`), the size below which nothing is proposed.

        Of the dead trials that are smaller than every surviving one, half (rounded down) are at or below it. Not all,
        for a network can also be dead by its allocation: in between another one is tried, and if it survives, the size
        falls. One dead trial alone says nothing.
        """
        found = {}
        for kind, dead in sorted(self._dead_sizes.items()):
            count = bisect_left(dead, self._least_alive.get(kind, math.inf))
            if count > 1:
                found[kind] = dead[count // 2 - 1]
        return found

    def _note_size(self, seen: Observation) -> None:
        kind = self._kind(seen.draft)
        if seen.dead:
            insort(self._dead_sizes.setdefault(kind, []), seen.size)
        elif seen.dead is False:
            self._least_alive[kind] = min(seen.size, self._least_alive.get(kind, math.inf))

    def _kind(self, draft: Draft) -> str:
        return kind_of(self._space, draft.granularity, draft.bits)

    def avoid(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note of a finished trial that says nothing about accuracy: its policy is not proposed again."""
        self._keys[number] = self._key(number, params)

    def known(self, number: int) -> bool:
        """Whether a trial has been learnt, or is avoided."""
        return number in self._keys

    def suggested(self, number: int) -> Suggestion | None:
        """What was suggested for a trial by this guide, if anything."""
        return self._suggested.get(number)

    def suggest(self, number: int, pending: Mapping[int, Mapping[str, Any]] | None = None) -> Suggestion:
        """The point trial `number` evaluates.

        Args:
            pending: of the trials that are being evaluated, by number, their values of all axes. What is proposed
                depends on these and on what was learnt, in whatever order.
        """
        self._pending.update(pending or {})
        self._suggested[number] = self._choose(number)
        return self._suggested[number]

    def _choose(self, number: int) -> Suggestion:
        random = np.random.default_rng([self._seed, number])
        rows = self._relevant()
        pool, rounds, kept = self._effort
        self._pool.least = self.least_sizes
        drafts = self._pool.draw(pool, self._parents(rows), random)
        if len(rows) < FEWEST:
            return self._suggestion(drafts[self._first_fresh(drafts, range(len(drafts)))], {})
        features, errors = np.array([o.features for o in rows]), np.array([o.error for o in rows])
        plain = Surrogate(features, logit(errors), self._features.weights, self._dense)
        for_best = self._one_size or (self._largest_error is None and number % AT_BEST == AT_BEST - 1)
        most_asked = np.vstack([[o.asked for o in rows], self._smallest]).max(axis=0)
        pending = self._pending.points
        surrogate = self._given(plain, pending, number)
        known = self._known([*rows, *pending], surrogate)
        candidates = self._candidates(drafts, surrogate)
        gains, order = self._ranked(candidates, known, most_asked, for_best)
        for _ in range(rounds):
            moved = [self._pool.swap(drafts[i], random) for i in order[:kept] for _ in range(2)]
            drafts, candidates = drafts + moved, candidates + self._candidates(moved, surrogate)
            gains, order = self._ranked(candidates, known, most_asked, for_best)
        chosen = self._first_fresh(drafts, order.tolist())
        said, place = candidates.prediction, chosen
        if pending:  # what is told of it is what finished trials say
            said, place = self._candidates([drafts[chosen]], plain).prediction, 0
        mean, sd = said.mean[place], said.sd[place]
        low, middle, high = expit(mean + sd * np.array([-1.0, 0.0, 1.0]))
        scores = {"predicted": 1 - middle, "predicted_low": 1 - high, "predicted_high": 1 - low, "gain": gains[chosen]}
        return self._suggestion(drafts[chosen], {name: float(value) for name, value in scores.items()})

    def _given(self, surrogate: Surrogate, pending: Sequence[Landed], number: int) -> Surrogate:
        """The surrogate as each of several draws of what the pending trials may turn out to be would have it."""
        if not pending:
            return surrogate
        features = np.array([point.features for point in pending])
        random = np.random.default_rng([self._seed, number, DRAWS])  # the candidates' own draws stay what they are
        expected, drawn = surrogate.predict(features).mean, surrogate.draw(features, DRAWS, random)
        return surrogate.given(features, expected + CAUTION * (drawn - expected))

    def _suggestion(self, draft: Draft, scores: Mapping[str, float]) -> Suggestion:
        return Suggestion(self._space.params_of(draft), draft.source, scores)

    def _join_front(self, number: int) -> None:
        """Keep the numbers of the trials none of the known ones dominates."""
        point = self._observed[number].point
        points = np.array([self._observed[n].point for n in self._front if n != number]).reshape(-1, 3)
        others = [n for n in self._front if n != number]
        if ((points <= point).all(axis=1) & (points < point).any(axis=1)).any():
            self._front = others
            return
        beaten = np.asarray((points >= point).all(axis=1) & (points > point).any(axis=1))
        self._front = [n for n, worse in zip(others, beaten, strict=True) if not worse] + [number]

    def _first_fresh(self, drafts: Sequence[Draft], order: Sequence[int]) -> int:
        """Index of the first draft, in this order, that is fine-tuned as no known trial was and no pending one is; else
        of the very first."""
        known = {*self._keys.values(), *self._pending.keys}
        return next((n for n in order if self._projector.project(drafts[n]).key not in known), order[0])

    def _key(self, number: int, params: Mapping[str, Any]) -> str:
        """What tells a trial's fine-tune from others'."""
        if number in self._policies:
            return fine_tune_key(self._space.network, self._policies[number])
        return self._projector.project(params).key

    def _relevant(self) -> list[Observation]:
        """What the surrogate is fitted to: all observations, or of very many the front's and the latest."""
        latest = sorted(self._observed)[-MOST_ROWS // 2 :]
        chosen = {*latest, *sorted(self._front)[-MOST_ROWS // 2 :]}
        left = (number for number in sorted(self._observed, reverse=True) if number not in chosen)
        return [self._observed[number] for number in sorted(chosen | {*islice(left, MOST_ROWS - len(chosen))})]

    def _parents(self, rows: Sequence[Observation]) -> list[Draft]:
        """The points of the best non-dominated ranks, of each granularity and bits by themselves."""
        parents: list[Draft] = []
        kinds = [self._kind(o.draft) for o in rows]
        share = PARENTS // len(self._space.usable)
        share = max(share // (1 if self._space.mixed else len(self._space.bits)), min(share, FEWEST_PARENTS))
        for kind in sorted(set(kinds)):
            own = [o for o, one in zip(rows, kinds, strict=True) if one == kind]
            rank = ranks(np.array([o.point for o in own]), 2)
            best = np.argsort(rank, kind="stable")[:share]
            parents += [own[i].draft for i in best if rank[i] <= 1 or len(own) < 4]
        return parents

    def _known(self, points: Sequence[Landed], surrogate: Surrogate) -> list[_Known]:
        """What has been fine-tuned, once for each draw that the surrogate was given."""
        sizes, speeds = np.log([point.size for point in points]), [point.speed for point in points]
        errors = expit(np.atleast_2d(surrogate.predict(np.array([point.features for point in points])).mean))
        fronts = [np.column_stack([own, sizes, speeds]) for own in errors]
        return [_Known(front, DominatedSpace(front, self._reference)) for front in fronts]

    def _candidates(self, drafts: Sequence[Draft], surrogate: Surrogate) -> _Candidates:
        batch = self._projector.project_batch(drafts)
        return _Candidates(batch, self._features.asked(batch), surrogate.predict(self._features.of(batch)))

    def _ranked(
        self, candidates: _Candidates, known: Sequence[_Known], most_asked: np.ndarray, for_best: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected gain (p,) of each candidate, and their indices from the best on; the too bold come last."""
        pairs = zip(candidates.prediction.each, known, strict=True)
        gains = np.mean([self._gains(candidates.batch, prediction, one, for_best) for prediction, one in pairs], axis=0)
        beyond = candidates.asked - 1 > BOLDEST * (most_asked - 1)
        return gains, np.lexsort((-gains, (beyond & (most_asked > 1)).any(axis=1)))

    def _gains(self, batch: ProjectedBatch, prediction: Prediction, known: _Known, for_best: bool) -> np.ndarray:
        """Expected gain (p,) of each candidate over what is known."""
        errors = expit(prediction.mean[:, None] + CAUTION * prediction.sd[:, None] * NODES)
        if for_best:
            return np.maximum(known.front[:, 0].min() - errors, 0) @ WEIGHTS
        if self._largest_error is not None:
            return self._smaller(batch.sizes, prediction, known.front, self._largest_error)
        return known.dominated.improvement(errors, np.log(batch.sizes), batch.speeds) @ WEIGHTS

    def _smaller(
        self, sizes: np.ndarray, prediction: Prediction, front: np.ndarray, largest_error: float
    ) -> np.ndarray:
        """By how much (p,) each is smaller than the smallest trial within the largest error, times its chance to be so.

        Sizes are compared by their logarithms. Which trials are within is taken from `front`, freed of noise. Where
        nothing is smaller, it is the chance alone.
        """
        within = front[front[:, 0] <= largest_error, 1]
        best = within.min(initial=np.log(self._space.size_range[1] * BEYOND_LIMIT))
        chance = np.asarray(ndtr((logit(largest_error) - prediction.mean) / prediction.sd))
        smaller = np.maximum(best - np.log(sizes), 0)
        return chance * smaller if smaller.any() else chance


def _within(error: float) -> float:
    return min(max(error, LEAST_ERROR), 1 - LEAST_ERROR)
