"""Sparsity as a function of the training step."""

from __future__ import annotations

import math

from spaces.schedule import Schedule
from spaces.validation import is_number, percent_meant

MASK_UPDATES = 20
"""Mask updates along a ramp without a given interval; each sorts every weight, so they are spread over the steps."""


def sparsity_at(
    step: float, start: float = 0, end: float = 100, initial: float = 0.0, final: float = 0.75, exponent: float = 3
) -> float:
    """Polynomial ramp v(t) = v_f + (v_i - v_f)(1 - p)^E with p = clamp((t - t_i)/(t_f - t_i), 0, 1).

    The polynomial of Zhu and Gupta (arXiv 1710.01878) with their cube as a free exponent: E = 1 is linear, E = 3 cubic.
    p is clamped before the power, so every real E > 0 is safe. Exactly `initial` up to `start` and exactly `final` from
    `end` on; `start == end` is a jump at `end`.

    Raises:
        ValueError: an exponent that is not finite and > 0, a step that is not a finite number, `end < start`, or a
            share outside [0, 1).

    >>> sparsity_at(50, start=0, end=100, initial=0.0, final=0.75, exponent=3)
    0.65625
    """
    if not (is_number(exponent) and exponent > 0):
        raise ValueError(f"exponent must be finite and > 0, got {exponent!r}; 1 is linear, 3 cubic")
    for name, value in (("step", step), ("start", start), ("end", end)):
        if not is_number(value):
            raise ValueError(f"{name} must be a finite number of steps, got {value!r}")
    if end < start:
        raise ValueError(f"end must not come before start, got start={start!r}, end={end!r}")
    for name, share in (("initial", initial), ("final", final)):
        if not (is_number(share) and 0 <= share < 1):
            raise ValueError(f"{name} must satisfy 0 <= {name} < 1, got {share!r}{percent_meant(share)}")
    if step >= end:
        return final
    if step <= start:
        return initial
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** exponent


def mask_updates(steps: int, schedule: Schedule) -> dict[int, float]:
    """Maps optimizer steps to shares of the final sparsity: before that step, masks change to that share. Shares rise
    to 1.0.

    A ramp is updated every `interval` steps from its start on, and at its end. An end equal to the number of steps
    means after the last one.
    """
    if schedule.kind == "one-shot":
        return {0: 1.0}
    if schedule.kind == "iterative":
        starts = [round_start(number, steps, schedule) for number in range(schedule.rounds)]
        return {start: _polynomial((n + 1) / schedule.rounds, schedule.exponent) for n, start in enumerate(starts)}
    first, end = int(schedule.start * steps), ramp_end(steps, schedule)
    interval = schedule.interval or max(1, (end - first) // MASK_UPDATES)
    ramp = {step: progress_at(step, steps, schedule) for step in range(first, end, interval)}
    return ramp | {end: 1.0}


def progress_at(step: int, steps: int, schedule: Schedule) -> float:
    """Share of the final sparsity due before optimizer step `step` of `steps`, in [0, 1].

    With `one-shot` it is 1.0 from the first step on. A ramp reaches 1.0 after `ceil(ramp * steps)` steps; rounds reach
    it when the last one begins.
    """
    if schedule.kind == "one-shot":
        return 1.0
    if schedule.kind == "iterative":
        begun = sum(round_start(number, steps, schedule) <= max(step, 0) for number in range(schedule.rounds))
        return _polynomial(begun / schedule.rounds, schedule.exponent)
    start, end = int(schedule.start * steps), ramp_end(steps, schedule)
    return _polynomial(min(max(step - start, 0) / (end - start), 1.0), schedule.exponent)


def ramp_end(steps: int, schedule: Schedule) -> int:
    """The step at which the final sparsity is reached: 0 for `one-shot`, after a ramp at least 1."""
    if schedule.kind == "one-shot":
        return 0
    if schedule.kind == "iterative":
        return round_start(schedule.rounds - 1, steps, schedule)
    return max(1, math.ceil(schedule.ramp * steps))


def round_start(number: int, steps: int, schedule: Schedule) -> int:
    """The first step of a round, counted from 0; rounds differ by at most one step in length."""
    return number * steps // schedule.rounds


def cycle_at(step: int, steps: int, schedule: Schedule | None) -> tuple[int, int]:
    """The step within its learning rate cycle, and the length of that cycle: the complete fine-tune, or one round."""
    if schedule is None or schedule.kind != "iterative":
        return step, steps
    number = max(n for n in range(schedule.rounds) if round_start(n, steps, schedule) <= step)
    start = round_start(number, steps, schedule)
    return step - start, round_start(number + 1, steps, schedule) - start


def _polynomial(p: float, exponent: float) -> float:
    return 1.0 - (1.0 - p) ** exponent
