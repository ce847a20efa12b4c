"""Sparsity as a function of the training step."""

from __future__ import annotations

import math

from spaces.policy import Schedule


def sparsity_at(
    step: float, start: float = 0, end: float = 100, initial: float = 0.0, final: float = 0.75, exponent: float = 3
) -> float:
    """Polynomial ramp v(t) = v_f + (v_i - v_f)(1 - p)^E with p = clamp((t - t_i)/(t_f - t_i), 0, 1).

    The polynomial of Zhu and Gupta (arXiv 1710.01878) with their cube as a free exponent: E = 1 is
    linear, E = 3 cubic. p is clamped before the power, so every real E > 0 is safe. Exactly `initial`
    up to `start` and exactly `final` from `end` on; `start == end` is a jump at `end`.

    Raises:
        ValueError: exponent not finite and > 0, `end < start`, or a share outside [0, 1).

    >>> sparsity_at(50, start=0, end=100, initial=0.0, final=0.75, exponent=3)
    0.65625
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"exponent must be finite and > 0, got {exponent!r}; 1 is linear, 3 cubic")
    if end < start:
        raise ValueError(f"end must not come before start, got start={start!r}, end={end!r}")
    for name, share in (("initial", initial), ("final", final)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must satisfy 0 <= {name} < 1, got {share!r}")
    if step >= end:
        return final
    if step <= start:
        return initial
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** exponent


def progress_at(step: int, steps: int, schedule: Schedule) -> float:
    """Share of the final sparsity due before optimizer step `step` of `steps`, in [0, 1].

    1.0 from the first step for `one-shot`; otherwise the ramp ends with the first
    `ceil(ramp * steps)` steps.
    """
    if schedule.kind == "one-shot":
        return 1.0
    end = ramp_end(steps, schedule)
    if step >= end:
        return 1.0
    return 1.0 - (1.0 - max(step, 0) / end) ** schedule.exponent


def ramp_end(steps: int, schedule: Schedule) -> int:
    """The step at which the final sparsity is reached: 0 for `one-shot`, at least 1 otherwise."""
    return 0 if schedule.kind == "one-shot" else max(1, math.ceil(schedule.ramp * steps))
