"""The page: what a study found as one HTML document that needs no network, no other file and no trust in names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from search.config import SearchConfig
from search.given_workload import lives_in_python
from search.masking import masked
from search.metric import Metric
from search.options import OPTIONS, key_of
from search.records import COMPLETE, TrialRecord
from search.report.figures import (
    Picture,
    front_picture,
    growth_picture,
    influence_picture,
    layers_picture,
    prediction_picture,
    sensitivity_picture,
)
from search.report.growth import growth_of
from search.report.influence import FEWEST, QUANTILE, Influence, influences
from search.report.limits import within_limits
from search.report.pointed import pointed_trials
from search.report.prediction import PredictionQuality, prediction_quality
from search.report.words import (
    is_without_finals,
    recommendations,
    statements_for,
    topics,
    where_it_stands,
)
from search.results.cells import bits_cell, closing_cells, schedule_cell
from search.results.closing import counted_examples
from search.results.figures import short_names
from search.results.legend import closing_legend, front_legend
from search.results.remarks import closing_of, dead_line, finals_line, resumed_in_python
from search.results.resume import export_command, resume_command
from search.results.state import StudyState
from search.results.tables import TrialRow
from search.results.view import StudyView
from search.store.outline import NetworkOutline, shown_outline, shown_profile
from spaces.bits import FLOAT_BITS
from spaces.printable import LONGEST_WORD, printable, shortened
from spaces.wording import counted, percent

HERE = Path(__file__).parent
SCREEN = 0.8
"""Pixels of a page for one of a picture, which is drawn at 120 dots an inch."""
NAMES = ("front", "growth", "sensitivity", "layers", "influence", "prediction")
"""Pictures that the page has a place for."""
MOST_LAYERS = 200
"""Layers of a policy that are listed; of more, those of which most is gone."""
POINTED_LAYERS = 12
"""The same beside a point."""
_PERCENT = re.compile(r"(\d) %")


@dataclass(frozen=True)
class Report:
    """A report of a study.

    Attributes:
        html: the page.
        pictures: those in it.
        words: the plain words on top, as data for JSON.
    """

    html: str
    pictures: tuple[Picture, ...]
    words: Mapping[str, Any]


def report_of(view: StudyView) -> Report:
    """What there is of a study now, running or not; nothing is written."""
    state, outline, profile = view.state, shown_outline(view.folder), shown_profile(view.folder)
    records = [state.records[number] for number in sorted(state.records)]
    growth, judged = growth_of(state), influences(records, state.config.size_metric)
    quality, pointed = prediction_quality(records), pointed_trials(state)
    drawn = [
        front_picture(state, pointed),
        growth_picture(growth, state) if growth else None,
        sensitivity_picture(profile, outline, state.unit) if profile and profile.points else None,
        layers_picture(state, outline),
        influence_picture(judged, state.unit) if judged else None,
        prediction_picture(quality, state.unit, pointed) if quality else None,
    ]
    pictures = tuple(picture for picture in drawn if picture is not None)
    shipped, within = (
        [{**asdict(one), "command": _command(view, one.trial)} for one in found]
        for found in (recommendations(state), within_limits(state))
    )
    said = {topic.question: list(topic.sentences) for topic in topics(view)}
    front = state.front
    context = {
        "study": view.folder.name,
        "standing": where_it_stands(view),
        "facts": _facts(view, outline),
        "unit": state.unit.name,
        "outline": outline is not None,
        "recommendations": shipped,
        "within_limits": within,
        "nothing_to_ship": _nothing_to_ship(view),
        "topics": topics(view),
        "statements": statements_for(state),
        "reasons": {shortened(reason, LONGEST_WORD): count for reason, count in state.reasons.items()},
        "pictures": dict.fromkeys(NAMES) | {picture.name: _embedded(picture) for picture in pictures},
        "beyond": sum(row.state == COMPLETE for row in state.rows) - len(pointed),
        "front": [_front_row(view, row) for row in front],
        "front_columns": _front_columns(state),
        "front_legend": front_legend(front, state.unit),
        "numbers": _front_columns(state).index("granularity"),
        **_finals(state),
        "no_finals": _no_finals(view),
        "no_scan": _no_scan(view),
        "influence": _influence_words(judged, state.unit),
        "prediction": _prediction_words(quality, state.unit, state.config.sampler),
        "in_python": resumed_in_python(view.config),
        "resume": resume_command(view.config, view.criterion_place),
        "options": study_toml(view.config).splitlines(),
        "folder": str(view.folder.path),
        "records": _records(view),
        "trials": {number: _pointed(view, state.records[number]) for number in _pointed_numbers(pictures)},
    }
    words = {"standing": context["standing"], "recommendations": shipped, "limits": within, "questions": said}
    return Report(_rendered(context), pictures, words)


def _rendered(context: Mapping[str, Any]) -> str:
    """The page's template with everything in it escaped and passwords masked; control characters become visible."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_harmless, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["verbatim"] = _verbatim
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    template = environment.from_string((HERE / "page.html").read_text(encoding="utf-8"))
    page = template.render(**context, style=Markup(style), script=Markup(script), policy=policy)
    return page.strip() + "\n"


def _harmless(value: object) -> object:
    """Text that does no harm, in which no line ends between a number and its %."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _PERCENT.sub("\\1\N{NO-BREAK SPACE}%", printable(masked(value)))


def _verbatim(command: str) -> Markup:
    """A command, whose spaces stay what they are."""
    return escape(printable(masked(command)))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(picture: Picture) -> dict[str, Any]:
    encoded = base64.b64encode(picture.svg.encode(errors="replace")).decode()
    source = Markup("data:image/svg+xml;base64," + encoded)  # holds no name, and by chance what looks like a password
    width, height = round(picture.width * SCREEN), round(picture.height * SCREEN)
    spots = [asdict(spot) for spot in picture.spots]
    shown = {"source": source, "title": picture.title, "alt": picture.alt, "width": width, "height": height}
    return shown | {"spots": spots}


def _command(view: StudyView, trial: int | None) -> str | None:
    if trial is None:
        return None
    name = view.folder.name
    return export_command(view.config, name, str(trial), f"{name}-{trial}", str(view.folder.root))


def _facts(view: StudyView, outline: NetworkOutline | None) -> list[str]:
    """What was asked for, and of which network."""
    state, config = view.state, view.config
    dense = state.unit.shown(state.dense_accuracy)
    said = [
        f"Pruning policies for workload {config.workload}, within {percent(state.max_size)} of the dense model's size "
        f"({config.size_metric})."
    ]
    if dense is not None:
        said.append(f"The dense model has {state.unit.name} {dense} on validation data.")
    if outline is not None:
        layers = counted(len(outline.layers), "prunable layer")
        said.append(f"It has {counted(outline.parameters, 'parameter')}, {counted(outline.macs, 'MAC')} and {layers}.")
    return [*said, "Sizes, MACs and latency are shares of the dense model's."]


def study_toml(config: SearchConfig) -> str:
    """The options of a study as a STUDY.toml; what has no value is left out, as are the root and a workload that no
    name leads to.
    """
    left_out = {"root", *(["workload"] if lives_in_python(config.workload) else [])}
    values = {key_of(name): getattr(config, name) for name in OPTIONS if name not in left_out}
    return "\n".join(f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)


def _toml(value: object) -> str:
    """As JSON, but for characters that JSON has as two halves, or as they are."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def _nothing_to_ship(view: StudyView) -> str:
    state = view.state
    if dead := state.dead_within(state.max_size):
        return f"Nothing yet: {dead_line(dead)}. Give the study more --trials or a larger limit."
    if not state.records:
        return "Nothing yet: no trial has finished."
    if state.front_length:
        return (
            "Nothing yet: all finalists are dead, no more accurate than chance, after their finals. Give the study "
            "more --trials or a larger limit, or export a trial by its number."
        )
    if state.is_fruitless:
        return "Nothing yet: no trial is complete. What did not complete, and why, is listed below."
    return f"Nothing yet: no complete trial is within the limit of {percent(state.max_size)}."


def _front_columns(state: StudyState) -> list[str]:
    columns = ["trial", state.unit.name, "final", "test", "encoded", "nonzero", "MACs"]
    return [*columns, *(["latency"] if _has_latency(state) else []), "granularity", "bits", "schedule", "origin"]


def _has_latency(state: StudyState) -> bool:
    return any(row.latency is not None for row in state.front)


def _front_row(view: StudyView, row: TrialRow) -> dict[str, Any]:
    state, unit = view.state, view.state.unit
    layers, more = _layers(state.records[row.trial], MOST_LAYERS)
    sizes = [percent(row.size_encoded), percent(row.size_nonzero), percent(row.macs)]
    sizes += [percent(row.latency)] if _has_latency(state) else []
    return {
        "trial": row.trial,
        "cells": [
            unit.shown(row.accuracy), unit.shown(row.final_accuracy), unit.spread(row.test_accuracy, row.test_sd),
            *sizes, row.granularity, bits_cell(row.bits), schedule_cell(row), row.origin,
        ],
        "summary": f"{unit.name} {unit.shown(row.accuracy)}, {percent(row.size)} of the size",
        "command": _command(view, row.trial),
        "layers": layers,
        "more": more,
    }  # fmt: skip


def _layers(record: TrialRecord, most: int) -> tuple[list[tuple[str, str, str, str, str]], str]:
    """Name, what is asked, what is gone, granularity and bits of a policy's layers, and what to say of more layers."""
    policy, gone = record.policy, record.result.achieved
    names = list(dict.fromkeys([*gone, *policy.sparsity, *policy.removal]))
    kept = set(sorted(names, key=lambda name: -gone.get(name, 0.0))[:most])
    rows = []
    for name in names:
        if name in kept:
            asked = f"{policy.sparsity.get(name, 0.0) * 100:.1f} %"
            if name in policy.removal:
                asked = f"channels {policy.removal[name] * 100:.1f} %, then {asked}"
            bits = policy.bits if isinstance(policy.bits, int) else policy.bits.get(name, FLOAT_BITS)
            rows.append((name, asked, percent(gone.get(name)) or "–", policy.granularity_of(name), str(bits)))
    left = len(names) - len(rows)
    return rows, f"{counted(left, 'more layer')}, of which less is gone" if left else ""


def _pointed_numbers(pictures: Iterable[Picture]) -> list[int]:
    return sorted({spot.trial for picture in pictures for spot in picture.spots})


def _pointed(view: StudyView, record: TrialRecord) -> dict[str, Any]:
    """What is shown of a trial beside its point."""
    row, unit = view.state.row(record.number), view.state.unit
    layers, more = _layers(record, POINTED_LAYERS)
    names = short_names(name for name, *_ in layers)
    facts = {
        unit.name: unit.shown(row.accuracy), "final": unit.shown(row.final_accuracy),
        "test": unit.spread(row.test_accuracy, row.test_sd), "size": percent(row.size), "MACs": percent(row.macs),
        "latency": percent(row.latency), "granularity": row.granularity, "bits": bits_cell(row.bits),
        "schedule": schedule_cell(row), "criterion": row.criterion, "origin": row.origin,
    }  # fmt: skip
    return {
        "title": f"Trial {record.number}",
        "facts": [[name, printable(value)] for name, value in facts.items() if value is not None],
        "layers": [[names[name], f"{gone} gone", f"{bits} bits"] for name, _, gone, _, bits in layers],
        "more": more,
        "command": _command(view, record.number),
    }


def _finals(state: StudyState) -> dict[str, Any]:
    columns, rows = closing_cells(closing_of(state), state.unit)
    examples = counted_examples(state.comparison, state.unit) if state.comparison else None
    legend = closing_legend(closing_of(state), state.unit)
    return {"finals": rows, "final_columns": columns, "test_examples": examples, "finals_legend": legend}


def _no_finals(view: StudyView) -> str:
    state = view.state
    if state.config.finalists == 0:
        _, _, command = finals_line(view.config, view.folder.name, view.criterion_place).partition(": ")
        return f"None: they were left out (--finalists 0). To add them: {command}"
    if is_without_finals(state):
        return "None: no network is within the limit and more accurate than chance."
    done = len(state.finals)
    return f"Not yet: {done} full fine-tunes are done." if done else "Not yet: they follow the last trial."


def _no_scan(view: StudyView) -> str:
    config = view.config
    if config.sampler != "guided" and not config.warm_start:
        return f"This study has no scan: --sampler {config.sampler} with --warm-start off needs none."
    if view.state.records:
        return "The study's folder holds no scan: it was last run by an earlier version. Its next run puts it there."
    return "Not yet: the scan has not ended."


def _influence_words(judged: Sequence[Influence], unit: Metric) -> str:
    if not judged:
        return (
            f"Too few complete trials, or none that differ: with fewer than {FEWEST} nothing can be told from chance."
        )
    layers = sum(one.is_layer for one in judged)
    expected = (1 - QUANTILE) * len(judged)
    return (
        f"A rank correlation of our own over {max(one.trials for one in judged)} complete trials: how much of what "
        f"size leaves unexplained in the ranks of {unit.name} each choice explains alone. Choices hang together, for a "
        "search made them and did not toss coins (the learning rate follows from what is pruned), so this is no proof "
        "of a cause. Of "
        f"{len(judged)} choices, {layers} of them layers, about {expected:.1f} pass their mark by chance."
    )


def _prediction_words(quality: PredictionQuality | None, unit: Metric, sampler: str) -> str:
    if quality is None:
        if sampler != "guided":
            return f"Only the guided sampler predicts accuracy; this study's is {sampler}."
        return "No trial that was predicted is complete yet."
    count = len(quality.points)
    parts = [f"{counted(count, 'trial')} had a prediction. It was off by {_points(quality.error, unit)} on average"]
    if quality.naive_error is not None:
        parts.append(f"; the mean of all earlier trials would have been off by {_points(quality.naive_error, unit)}")
    parts.append(f". {quality.within} of {count} came out within one predicted deviation")
    if quality.rank is None:
        parts.append("; too few for a rank correlation.")
    else:
        parts.append(f"; rank correlation {quality.rank:.2f}.")
    return "".join(parts)


def _points(share: float, unit: Metric) -> str:
    """A mean difference of shares; of a metric with a unit, shares are what the search predicts."""
    return f"{share * 100:.2f} points" if unit.is_share else f"{share:.3f} of the search's share from 0 to 1"


def _records(view: StudyView) -> list[tuple[str, list[tuple[str, str]]]]:
    """Versions and fingerprints, as rows of tables."""
    record = view.folder.read_record()
    found = []
    for title, part in (
        ("Versions and device of the last run", record.get("environment", {})),
        ("Fingerprints of model, data and code, and the recipe", record["identity"]),
    ):
        rows = [(str(name), _plain(value)) for name, value in part.items() if value is not None]
        found.append((title, rows))
    return found


def _plain(value: object) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value), LONGEST_WORD * 5)
