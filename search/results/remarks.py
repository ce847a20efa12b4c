"""What there is to say of a study besides its tables, each in one place for every command that says it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from search.config import SearchConfig
from search.given_workload import lives_in_python
from search.metric import MAX
from search.results.cells import MIXED
from search.results.closing import ClosingRow, Level, alike_line, closing_rows, level_line, level_rules, verdict
from search.results.resume import resume_command
from search.results.state import StudyState
from search.results.tables import TrialRow
from spaces.granularity import parts_of
from spaces.wording import counted, limit, percent

LOOSE = 0.5
"""Share of the size limit, up to which the best network is told to be far below it."""


def closing_of(state: StudyState) -> list[ClosingRow]:
    """The closing table's rows; none before the finals."""
    if state.comparison is None:
        return []
    return closing_rows(state.comparison, state.scores, trial_of(state))


def alike_of(state: StudyState) -> str | None:
    """Which static rules come to the network of another row, see `search.results.closing.alike_line`."""
    return alike_line(state.comparison, state.scores, trial_of(state)) if state.comparison else None


def level_rules_of(state: StudyState) -> list[Level]:
    """Static rules as good as their finalists, see `search.results.closing.level_rules`; none before the finals."""
    return level_rules(state.comparison, state.scores, trial_of(state), state.unit) if state.comparison else []


def level_line_of(state: StudyState) -> str:
    """The same in a line; empty if there are none."""
    return level_line(level_rules_of(state))


def trial_of(state: StudyState) -> dict[str, int]:
    """Digest of a policy -> the trial that has it."""
    return {record.policy.digest: number for number, record in sorted(state.records.items())}


def verdict_of(state: StudyState) -> str | None:
    """What the finals come to, see `search.results.closing.verdict`; None before them."""
    if not state.comparison:
        return None
    config = state.config
    return verdict(state.comparison, state.scores, config.max_size, config.size_metric, state.unit)


def dead_line(count: int) -> str:
    """Networks that are on no front because they have learnt nothing."""
    return f"{counted(count, 'dead network')} (no more accurate than chance) left out; `front --all` shows all trials"


def speed_remark(front: Sequence[TrialRow]) -> str:
    """That masks bring no speed, where the front has any; else empty."""
    words = dict.fromkeys(row.granularity for row in front if row.granularity is not None and not _loses_channels(row))
    masks = [word for word in words if "channel" not in parts_of(word)]
    if masks:
        named = ", ".join(masks)
        return (
            f"Masks ({named}) make the file smaller, not dense kernels faster; only removed channels lower MACs and "
            "latency."
        )
    return ""


def _loses_channels(row: TrialRow) -> bool:
    """Whether granularities that differ from layer to layer remove channels somewhere."""
    return row.granularity == MIXED and row.macs is not None and row.macs < 1


def accuracy_remark(state: StudyState) -> str:
    """Whether the accuracy that was asked for is reached, and by what; empty if none was, or nothing is feasible."""
    best = state.best
    if state.least_accuracy is None or best is None:
        return ""
    unit = state.unit
    least = unit.told(state.least_accuracy)
    bound = "at least" if unit.best == MAX else "at most"
    wanted = f"{_article(unit.name)} {unit.name} of {bound} {least} on validation data"
    if not is_accurate(state):
        remedy = "give the study more --trials or a larger limit"
        return f"No network has {wanted}: trial {best} comes nearest; {remedy}."
    size = state.row(best).size
    return f"The smallest network found with {wanted}: trial {best}, {percent(size, 2)} of the dense size."


def limit_remark(state: StudyState) -> str:
    """That the best network is far smaller than the limit asks for; empty if it is not, if the smallest was wanted, or
    if a limit on MACs or latency may be what keeps it small.
    """
    is_free = state.config.max_macs == state.config.max_latency == 1
    if state.best is None or state.least_accuracy is not None or not is_free:
        return ""
    size = state.row(state.best).size
    if size is None or size > LOOSE * state.max_size:
        return ""
    return (
        f"The size limit of {limit(state.max_size)} leaves room: trial {state.best} takes {percent(size)}. A new "
        "--study with a smaller --max-size looks closer there."
    )


def is_accurate(state: StudyState) -> bool:
    """Whether the best trial has the accuracy asked for; True if none was."""
    best = state.best
    if state.least_accuracy is None or best is None:
        return True
    row = state.row(best)
    accuracy = row.accuracy if row.final_accuracy is None else row.final_accuracy
    return accuracy is not None and accuracy >= state.least_accuracy


def resumed_in_python(config: SearchConfig) -> str:
    """Where a study of what lives in a Python program alone goes on; empty of one that a command resumes."""
    if ":" in config.criterion and ".py:" not in config.criterion:
        return f"by run_search in a Python program that registers criterion {config.criterion!r}"
    if lives_in_python(config.workload):
        return f"by run_search in the Python program that has workload {config.workload!r}"
    return ""


def resume_line(config: SearchConfig, place: str | None) -> str:
    """How the study goes on; `place` is where a criterion of the user's own was, see `StudyView`."""
    return f"Resume: {resumed_in_python(config) or resume_command(config, place)}"


def finals_line(config: SearchConfig, study: str, place: str | None = None) -> str:
    """How the finals of a study that were left out are made up for; `place` is as of `resume_line`."""
    if ":" in config.criterion and ".py:" not in config.criterion:
        return f"Finals: by run_finals in a Python program that registers criterion {config.criterion!r}"
    if lives_in_python(config.workload):
        return f"Finals: by run_finals in the Python program that has workload {config.workload!r}"
    parts = ["prunefront", "finals", study]
    parts += ["--criterion", place or config.criterion] if ":" in config.criterion else []
    parts += ["--trust-remote-code"] if config.trust_remote_code else []
    parts += ["--root", config.root] if config.root != "mlruns" else []
    return f"Finals: {shlex.join(parts)}"


def _article(name: str) -> str:
    """Which article is said before a name: letters that are spelled, as of RMSE, may begin with a vowel."""
    spelled = not name[:2].islower() and name[:1].isupper() and not name[1:2].islower()
    return "an" if name[:1] in ("AEFHILMNORSX" if spelled else "aeiouAEIOU") else "a"
