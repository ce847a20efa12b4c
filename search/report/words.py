"""What a study comes to in plain words: what to ship, what is noise, whether rounding alone would do, what speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.metric import MAX
from search.results.cells import MIXED, bits_cell, counts_line, latency_line, slower_line
from search.results.closing import ALIKE, ClosingRow, against_static, level_with_top, rounding_alone
from search.results.device_support import KINDS, STATEMENTS, Statement
from search.results.remarks import accuracy_remark, alike_of, closing_of, dead_line, is_accurate, speed_remark
from search.results.selection import knee_trial, not_dead_at_last, smallest_trial
from search.results.state import StudyState
from search.results.tables import TrialRow
from search.results.view import StudyView
from spaces.bits import FLOAT_BITS
from spaces.granularity import parts_in
from spaces.wording import counted, listed, percent

NEAR_BEST = 0.01
"""How far below the best trial, as a share, the fastest one worth naming may be."""
SPARSE_ENOUGH = 0.7
"""Share of its multiplications that masks must take away before a sparse runtime gains by it."""


@dataclass(frozen=True)
class Recommendation:
    """What to ship for a target.

    Attributes:
        target: where it is to run, or what is to be small.
        trial: its number; None if the study has nothing for this target.
        why: in words.
    """

    target: str
    trial: int | None
    why: str


@dataclass(frozen=True)
class Topic:
    """A question, and its answer in sentences."""

    question: str
    sentences: tuple[str, ...]


def where_it_stands(view: StudyView) -> str:
    """Whether the study runs, what of it is there, and how it goes on."""
    counts, asked = view.counts, view.config.trials
    said = f"{counts_line(counts)}, of {counted(asked, 'trial')} asked for"
    if view.running:
        return f"The study is running: {said}. This page shows what there was when it was written."
    if view.state.seconds_left == 0:
        return f"The study is finished: {said}."
    return f"The study is interrupted: {said}. The command under “How to reproduce it” goes on with it."


def is_without_finals(state: StudyState) -> bool:
    """Whether a study has ended without a network that finals could be of."""
    return state.config.finalists > 0 and not state.front_length and state.seconds_left == 0


def topics(view: StudyView) -> list[Topic]:
    """The questions that a reader has first."""
    return [
        Topic("What is within noise?", tuple(_noise(view.state))),
        Topic("Would plain quantisation do?", (_quantisation(view.state),)),
        Topic("What brings no speed?", tuple(_speed(view.state))),
    ]


def recommendations(state: StudyState) -> list[Recommendation]:
    """What to ship for which target; empty without a network on the front."""
    front = not_dead_at_last(state.front, state.chance)
    best = state.best
    if best is None or not front:
        return []
    found = [Recommendation(_target_of_best(state), best, described(state, state.row(best)))]
    for target, number in (
        (f"size against {state.unit.name} (the knee)", knee_trial(front)),
        ("least bytes", smallest_trial(front)),
    ):
        if number is not None:
            found.append(Recommendation(target, number, described(state, state.row(number))))
    return [
        *found,
        _for_dense_kernels(state, front, best),
        *_for_patterns(state, front),
        _for_sparse_runtimes(state, front),
    ]


def _target_of_best(state: StudyState) -> str:
    """What the study's best is best in: a study that asks for an accuracy has the smallest with it as its best."""
    unit, least = state.unit, state.least_accuracy
    if least is None or not is_accurate(state):
        return f"{unit.name} within the limit, any device"
    return f"size, with {unit.name} of at {'least' if unit.best == MAX else 'most'} {unit.told(least)}, any device"


def statements_for(state: StudyState) -> list[Statement]:
    """What the front's granularities bring on each target, target by target."""
    parts = {part for row in state.front for part in _parts(state, row)}
    return [one for target in KINDS for one in STATEMENTS if one.target == target and parts & {*one.granularities}]


def described(state: StudyState, row: TrialRow) -> str:
    """A finished trial in a few words."""
    final = row.final_accuracy is not None
    accuracy = state.unit.shown(row.final_accuracy if final else row.accuracy)
    bits = "" if row.bits in (None, FLOAT_BITS) else f", {bits_cell(row.bits)} bits"
    cost = f"{percent(row.macs)} of the MACs"
    if state.config.cost == "latency" and row.latency is not None:
        cost += f", {percent(row.latency)} of the latency by prediction"
    split = "validation data, mean of finals" if final else "validation data"
    size = f"{percent(row.size)} of the size"
    granularity = "granularities that differ by layer" if row.granularity == MIXED else row.granularity
    if not any(share for shares in (row.sparsity, row.removal) for share in (shares or {}).values()):
        granularity = "nothing pruned"
    return f"{state.unit.name} {accuracy} on {split}, {size}, {cost}; {granularity}{bits}"


def _parts(state: StudyState, row: TrialRow) -> set[str]:
    """What a trial's granularity is made of, of all its layers where they differ."""
    granularity = state.records[row.trial].policy.granularity
    return {*parts_in([granularity] if isinstance(granularity, str) else granularity.values())}


def _accuracy(row: TrialRow) -> float:
    return row.point.accuracy if row.final_accuracy is None else row.final_accuracy


def _for_dense_kernels(state: StudyState, front: Sequence[TrialRow], best: int) -> Recommendation:
    target, by_latency = "speed on CPU, GPU or NPU with dense kernels", state.config.cost == "latency"

    def cost(row: TrialRow) -> float:
        found = row.latency if by_latency else row.macs
        return 1.0 if found is None else found

    least = _accuracy(state.row(best)) - NEAR_BEST
    faster = [row for row in front if "channel" in _parts(state, row) and cost(row) < 1 - ALIKE]
    if not faster:
        what = "latency, by prediction" if by_latency else "MACs"
        said = f"no network on the front has less than {percent(1 - ALIKE, 0)} of the dense model's {what}"
        return Recommendation(target, None, said)
    near = [row for row in faster if _accuracy(row) >= least]
    what = "latency, by prediction," if by_latency else "MACs"
    if near:
        row = min(near, key=cost)
        fewest, apart = "least" if by_latency else "fewest", state.unit.distance(_accuracy(state.row(best)), least)
        said = f"the {fewest} {what} at most {apart} from the best: {described(state, row)}{_measured(state, row)}"
        return Recommendation(target, row.trial, said)
    row = max(faster, key=_accuracy)
    apart = state.unit.distance(_accuracy(state.row(best)), _accuracy(row))
    found = f"{described(state, row)}{_measured(state, row)}"
    said = f"the most accurate of those that are faster, {apart} from the best: {found}"
    return Recommendation(target, row.trial, said)


def _measured(state: StudyState, row: TrialRow) -> str:
    """The latency of a finalist that was timed; empty of others."""
    timed = state.comparison.latency if state.comparison else None
    if timed is None or row.digest is None or row.digest not in timed.networks:
        return ""
    share = percent(timed.networks[row.digest].share)
    noise = ", which is within noise" if timed.within_noise(row.digest) else ""
    return f"; measured on {timed.device}: {share} of the dense latency{noise}"


def _for_patterns(state: StudyState, front: Sequence[TrialRow]) -> list[Recommendation]:
    rows = [row for row in front if {"2:4", "1:4"} & _parts(state, row)]
    if not rows:
        return []
    row = max(rows, key=_accuracy)
    said = f"a 2:4 pattern, for linear layers in half precision or int8: {described(state, row)}"
    return [Recommendation("GPU with 2:4 kernels", row.trial, said)]


def _for_sparse_runtimes(state: StudyState, front: Sequence[TrialRow]) -> Recommendation:
    target, found = "sparse runtime such as XNNPACK (ARM, WebAssembly)", []
    for row in front:
        shares = state.records[row.trial].result.shares
        if shares is not None and "fine-grained" in _parts(state, row) and shares.macs > 0:
            found.append((row, 1 - shares.macs_nonzero / shares.macs))
    sparse = [(row, gone) for row, gone in found if gone >= SPARSE_ENOUGH]
    if not sparse:
        most = max((gone for _, gone in found), default=None)
        there = "no network on the front is fine-grained"
        if most is not None:
            there = f"on the front at most {percent(most)} are"
        return Recommendation(
            target,
            None,
            f"it gains where at least about {percent(SPARSE_ENOUGH, 0)} of a fine-grained network's multiplications "
            f"are by zero; {there}",
        )
    row, gone = max(sparse, key=lambda pair: _accuracy(pair[0]))
    return Recommendation(
        target, row.trial, f"{percent(gone, 0)} of its multiplications are by zero: {described(state, row)}"
    )


def _noise(state: StudyState) -> list[str]:
    said = [accuracy_remark(state)] if accuracy_remark(state) else []
    if dead := state.dead_within(state.max_size):
        said.append(dead_line(dead) + ".")
    comparison = state.comparison
    found = level_with_top(comparison, state.scores, state.unit) if comparison else None
    if comparison is None or found is None:
        why = "were left out (--finalists 0)" if state.config.finalists == 0 else "are not there yet"
        if is_without_finals(state):
            why = "had no network within the limit to repeat"
        return [
            *said,
            f"The finals {why}: every {state.unit.name} here is of one short fine-tune, on validation data that "
            "the search chose by. Small differences may be noise; finals repeat the best trials with other seeds.",
        ]
    if static := against_static(comparison, state.scores, state.unit):
        said.append(static)
    if alike := alike_of(state):
        said.append(alike)
    top, *others = found
    names = {record.policy.digest: f"trial {number}" for number, record in sorted(state.records.items(), reverse=True)}
    first = names.get(top.digest, top.digest)
    level, apart, unknown = ([names.get(one.digest, one.digest) for one in group] for group in others)
    if level:
        said.append(f"On test data {listed(level)} cannot be told from {first}.")
    if apart:
        said.append(f"Apart from {first} by more than noise: {listed(apart)}.")
    if unknown:
        said.append(f"By one run each, nothing tells whether {first} differs by noise from {listed(unknown)}.")
    return said or [f"Only {first} has finals: there is nothing to tell it apart from."]


def _quantisation(state: StudyState) -> str:
    config = state.config
    if state.comparison is not None:
        compared = state.comparison, state.scores, config.max_size, config.size_metric, state.unit
        if said := rounding_alone(*compared):
            return said
    plain = [row for row in state.rows if row.origin == "unpruned" and row.accuracy is not None]
    later = "The finals compare the front with the dense model at 8, 6 and 4 bits; there are none yet."
    if is_without_finals(state):
        later = "There were no finals, in which the front is compared with the dense model at 8, 6 and 4 bits."
    if config.finalists == 0:
        later = "Without finals (--finalists 0) nothing is compared on test data."
    if not plain:
        return later
    parts = [f"{bits_cell(row.bits)} bits, {percent(row.size)}: {state.unit.shown(row.accuracy)}" for row in plain]
    return f"{later} Trials that only round, nothing pruned, have on validation data: {'; '.join(parts)}."


def _speed(state: StudyState) -> list[str]:
    front = state.front
    if not front:
        return ["Nothing is on the front yet."]
    said = [speed_remark(front)] if speed_remark(front) else []
    if any((row.bits or FLOAT_BITS) != FLOAT_BITS for row in front):
        said.append("Fewer bits make the file smaller; kernels that compute with floats are no faster by them.")
    timed = state.comparison.latency if state.comparison else None
    if timed is None:
        said.append(_unmeasured(state))
        return said
    rows = closing_of(state)
    said += filter(None, [latency_line(timed), slower_line(timed, rows, state.config.round_to)])
    return [*said, *_not_faster(rows)]


def _unmeasured(state: StudyState) -> str:
    """What there is in place of measured latency."""
    to_come = state.config.finalists and state.comparison is None and not is_without_finals(state)
    if state.config.needs_latency and to_come:
        return "Latency is measured with the finals, which are not there yet: until then it is predicted."
    return "Latency was not measured in this study: MACs say what dense kernels are spared, not what they take."


def _not_faster(rows: Sequence[ClosingRow]) -> list[str]:
    names = [row.name for row in rows if row.within_noise]
    return [f"Not shown to be faster or slower than the dense model: {listed(names)}."] if names else []
