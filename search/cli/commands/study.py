"""Commands on a study: search, finals, front, status, report, view."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cli.commands.reply import Reply, written_line
from search.cli.mlflow_ui import serve_ui, ui_command
from search.cli.parser import given_options
from search.cli.text_tables import closing_table, front_table, fronts_table, size_by
from search.config import SearchConfig, make_config, read_study_file, updated
from search.errors import EnvironmentProblem, UsageError
from search.export.choose import choose_trial
from search.files import check_writable, open_root, write_durably
from search.masking import masked
from search.metric import Metric
from search.options import FORMER
from search.progress import TerminalReporter, duration
from search.results.cells import bits_cell, counts_line, latency_line, slower_line
from search.results.closing import plain_closing_rows
from search.results.figures import KINDS, front_figure, fronts_figure
from search.results.legend import closing_legend, front_legend
from search.results.policy_figure import policy_figure
from search.results.remarks import (
    accuracy_remark,
    alike_of,
    closing_of,
    dead_line,
    is_accurate,
    level_line_of,
    limit_remark,
    resume_line,
    speed_remark,
    verdict_of,
)
from search.results.resume import export_command
from search.results.state import StudyState
from search.results.tables import FRONT_COLUMNS, TRIAL_COLUMNS, TrialRow, csv_text, plain_rows
from search.results.tightness import tightness_line
from search.results.unlike import unlike
from search.results.view import StudyView, open_study
from search.store.mlflow_place import TRACKING, mlflow_place, server_named, study_page
from search.store.mlflow_store import open_store
from search.store.outline import shown_outline
from search.study.result import SearchResult
from spaces.bits import FLOAT_BITS
from spaces.wording import counted, limit, listed, percent

if TYPE_CHECKING:  # drawing, which the other commands do without
    from search.results.picture import Picture


def search(arguments: argparse.Namespace) -> Reply:
    """Start or resume a study."""
    from search.study.start import run_search  # PyTorch takes seconds to import, and what only reads does without
    from search.user_code.loading import named_criterion

    options = read_study_file(Path(arguments.study_file)) if arguments.study_file else {}
    options = updated(options, given_options(arguments))
    if isinstance(options.get("criterion"), str):
        options["criterion"] = named_criterion(options["criterion"])
    config = make_config(**options)
    if arguments.dry_run:
        return _previewed(config)
    result = run_search(config, TerminalReporter())
    met = result.best is not None and is_accurate(result.state)
    return Reply(_search_data(result), _search_text(result, config.root), 0 if met else 1)


def finals(arguments: argparse.Namespace) -> Reply:
    """Run or complete the finals of a study."""
    from search.study.start import FINALS_OPTIONS, run_finals  # PyTorch takes seconds to import
    from search.user_code.loading import named_criterion

    options = given_options(arguments, [*FINALS_OPTIONS, *FORMER])
    if isinstance(options.get("criterion"), str):
        options["criterion"] = named_criterion(options["criterion"])
    named = _trial_numbers(arguments.named)
    result = run_finals(arguments.study, arguments.root, trials=named, watcher=TerminalReporter(), **options)
    met = result.best is not None and is_accurate(result.state)
    return Reply(_search_data(result), _search_text(result, arguments.root), 0 if met else 1)


def _trial_numbers(words: tuple[int | float | str, ...] | None) -> tuple[int, ...]:
    """The trials that `--trials` names."""
    for word in words or ():
        if not isinstance(word, int) or word < 0:
            raise UsageError(f"--trials takes numbers of trials, such as 7,12, got {word!r}; see `front --all`")
    return tuple(word for word in words or () if isinstance(word, int))


def _previewed(config: SearchConfig) -> Reply:
    from search.cli.preview_text import preview_data, preview_text
    from search.study.preview import preview_study

    found = preview_study(config, TerminalReporter())
    return Reply(preview_data(found), preview_text(found))


def _search_data(result: SearchResult) -> dict[str, Any]:
    return {
        "study": result.study,
        **result.state.dense_scores,
        "trials": dict(result.counts),
        "best": result.best,
        "front": plain_rows(result.state.front, FRONT_COLUMNS, result.state.unit),
        "finals": plain_closing_rows(closing_of(result.state), result.state.unit),
        "latency": asdict(timed) if (timed := result.comparison and result.comparison.latency) else None,
        "verdict": verdict_of(result.state),
        "files": _files_data(result.state),
        "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
    }


def _search_text(result: SearchResult, root: str) -> str:
    dead, found = result.state.dead_within(1.0), result.state.front
    parts = [
        f"Study {result.study}: dense {_told(result.state, result.dense_accuracy)} on validation data; "
        f"{counts_line(result.counts)}; front of {len(found)}" + (f"; {dead_line(dead)}" if dead else "")
    ]
    if not found:
        return parts[0] + f": no feasible trial; see `prunefront front {result.study} --all`"
    said, metric = front_legend(found, result.state.unit), result.state.config.size_metric
    parts.append(front_table(found, unit=result.state.unit, legend=said, metric=metric))
    if result.comparison:
        rows = closing_of(result.state)
        more = [line for line in closing_legend(rows, result.state.unit) if line not in said]
        parts += [closing_table(rows, result.state.unit, more, metric), alike_of(result.state) or ""]
        round_to = result.state.config.round_to
        if timed := result.comparison.latency:
            parts.append(" ".join(filter(None, [latency_line(timed), slower_line(timed, rows, round_to)])))
        parts += [verdict_of(result.state) or "", level_line_of(result.state)]
    parts.append(_files_line(result.state))
    parts += [accuracy_remark(result.state), limit_remark(result.state)]
    parts.append(speed_remark(found))
    parts.append("Seconds: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items()))
    place = "" if root == "mlruns" else f" --root {shlex.quote(root)}"
    if result.best is None:
        parts.append(
            "All finalists are dead, no more accurate than chance, after their finals: give the study more --trials or "
            "a larger limit, or export a trial by its number"
        )
        return "\n\n".join(part for part in parts if part)
    command = export_command(result.state.config, result.study, "best", "DIR", root)
    parts.append(f"Next: {command}    or: prunefront view{place}")
    return "\n\n".join(part for part in parts if part)


def _told(state: StudyState, share: float | None, word: str = "") -> str:
    """`final accuracy 97.25 %`, or the same in the unit of the study's own metric."""
    return f"{word}{state.unit.name} {state.unit.shown(share)}"


def _files_data(state: StudyState) -> dict[str, Any] | None:
    return asdict(found) if (found := state.tightness) else None


def _files_line(state: StudyState) -> str:
    return tightness_line(found) if (found := state.tightness) else ""


def front(arguments: argparse.Namespace) -> Reply:
    """The Pareto set, or all trials."""
    kind = _kind_of_picture(arguments.picture)
    view = open_study(arguments.root, arguments.study, *_limits(arguments))
    if arguments.trial is not None and (kind is None or arguments.compare is not None):
        what = "beside --compare: leave one of them out" if kind else "without --picture FILE.png: name one"
        raise UsageError(f"--trial {arguments.trial} has no effect {what}")
    if arguments.compare is not None:
        return _compared(arguments, view, kind)
    state, columns = view.state, TRIAL_COLUMNS if arguments.all else FRONT_COLUMNS
    rows = view.rows if arguments.all else state.front
    data = plain_rows(rows, columns, state.unit)
    if arguments.format == "json":
        text = json.dumps(data, allow_nan=False)
    elif arguments.format == "csv":
        text = csv_text(rows, columns, json.dumps, state.unit).rstrip("\n")
    else:
        text = "no feasible trial yet"
        if rows:
            text = front_table(rows, arguments.all, state.unit, front_legend(rows, state.unit), view.config.size_metric)
        if state.dense_accuracy is not None:
            text = f"Dense {state.unit.name}: {state.unit.shown(state.dense_accuracy)} on validation data\n\n{text}"
        if arguments.all and (said := _files_line(state)):
            text += f"\n\n{said}"
        if not arguments.all and (said := _limits_line(arguments, state)):
            text += f"\n\n{said}"
        if not arguments.all and (dead := state.dead_within(state.max_size)):
            text += f"\n\n{dead_line(dead)}"
    is_data = arguments.format != "table"
    reply = Reply({"study": arguments.study, **state.dense_scores, "front": data}, text, is_data=is_data)
    if not kind:
        return reply
    if arguments.trial is not None:
        return _with_picture(reply, arguments, _policy_drawn(view, arguments.trial).saved(kind))
    config = view.config
    shown = view.rows, state.front, state.max_size, state.comparison, state.scores, config.size_metric, state.unit
    return _with_picture(reply, arguments, front_figure(*shown).saved(kind))


def _limits(arguments: argparse.Namespace) -> tuple[float | None, float | None, float | None]:
    """Of size, MACs and latency, as far as they are given."""
    return arguments.max_size, arguments.max_macs, arguments.max_latency


def _limits_line(arguments: argparse.Namespace, state: StudyState) -> str:
    """How much of the front keeps to limits that were given; empty without one."""
    of = (f"{state.config.size_metric} size", "MACs", "predicted latency")
    said = [f"{limit(share)} of the {what}" for share, what in zip(_limits(arguments), of, strict=True) if share]
    return f"Within {listed(said)}: {counted(len(state.front), 'trial')} on the front." if said else ""


def _policy_drawn(view: StudyView, choice: str) -> Picture:
    """The picture of a policy of the study."""
    chosen, unit = choose_trial(view, choice), view.state.unit
    if chosen.remark:
        TerminalReporter().note(chosen.remark)
    outline = shown_outline(view.folder)
    policy, found = chosen.policy, chosen.result.measured
    layers = [layer.name for layer in outline.layers] if outline else [*policy.sparsity, *policy.removal]
    metric = view.config.size_metric
    value, size = unit.shown(found.accuracy), percent(found.shares.of(metric))
    title = f"{chosen.name[:1].upper()}{chosen.name[1:]}: {unit.name} {value} at {size} of the {metric} size"
    return policy_figure(policy, list(dict.fromkeys(layers)), title, outline.parameter_shares() if outline else {})


def _kind_of_picture(file: str | None) -> str | None:
    """The kind of file that `--picture` names, once it is sure that it can be written; None without one."""
    if file is None:
        return None
    kind = Path(file).suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UsageError(f"--picture must end in .png, .svg or .pdf, got {file!r}: name it so")
    if Path(file).is_dir():
        raise UsageError(f"--picture {file!r} is a folder: name a file")
    check_writable(Path(file).absolute().parent, "--picture")
    return kind


def _with_picture(reply: Reply, arguments: argparse.Namespace, picture: bytes) -> Reply:
    """Write it; a line says so, but where the text is for programs."""
    write_durably(Path(arguments.picture), picture)
    line = f"\n\n{written_line([arguments.picture])}" if arguments.format == "table" else ""
    return replace(reply, data={**reply.data, "picture": arguments.picture}, text=reply.text + line)


def _compared(arguments: argparse.Namespace, view: StudyView, kind: str | None) -> Reply:
    """Two fronts side by side, within the same limits."""
    if arguments.all or arguments.format != "table":
        wrong = "--all" if arguments.all else f"--format {arguments.format}"
        raise UsageError(f"{wrong} has no effect beside --compare, whose rows --json has: leave it out")
    if arguments.compare == arguments.study:
        raise UsageError(f"--compare names {arguments.compare!r}, the study itself: name another one")
    other = open_study(arguments.root, arguments.compare, *_limits(arguments))
    found = unlike(view, other)
    said = found.line(arguments.study, arguments.compare)
    if kind and not found.metric:
        raise UsageError(f"--picture draws accuracies on one scale: leave it out, since {said}")
    seen = {arguments.study: view.state, arguments.compare: other.state}
    fronts = {name: state.front for name, state in seen.items()}
    units = {name: state.unit for name, state in seen.items()}
    studies = [{"study": name, "front": plain_rows(fronts[name], FRONT_COLUMNS, units[name])} for name in seen]
    is_found = any(fronts.values())
    table = fronts_table(fronts, units, found.size, found.latency) if is_found else "no feasible trial in either study"
    text = f"{table}\n\n{said}" if said else table
    reply = Reply({"studies": studies, "differences": list(found.differences)}, text)
    if not kind:
        return reply
    drawn = {name: _drawn_by(rows, units[name], view.state.unit, found.size) for name, rows in fronts.items()}
    return _with_picture(reply, arguments, fronts_figure(drawn, view.state.unit).saved(kind))


def _drawn_by(rows: Sequence[TrialRow], own: Metric, unit: Metric, size: str) -> list[TrialRow]:
    """Rows with sizes by one measure, and with accuracies that stand for the same values by another study's metric,
    which may have another dense model.
    """
    found = [replace(row, size=size_by(row, size)) for row in rows]
    if own == unit:
        return found
    return [replace(row, accuracy=unit.share(own.value(row.point.accuracy))) for row in found]


def status(arguments: argparse.Namespace) -> Reply:
    """Counts, best so far, time left."""
    view = open_study(arguments.root, arguments.study)
    config, state = view.config, view.state
    left, reasons, best = state.seconds_left, state.reasons, state.best
    row = None if best is None else state.row(best)
    data = {
        "study": arguments.study,
        **state.dense_scores,
        "trials": view.counts,
        "asked": config.trials,
        "reasons": reasons,
        "running": view.running,
        "front_size": state.front_length,
        "best": row and plain_rows([row], unit=state.unit)[0],
        "seconds_left": left,
        "files": _files_data(state),
    }
    lines = [
        f"Study {arguments.study}: {counts_line(view.counts)} of {config.trials} asked; "
        + ("running" if view.running else "not running"),
        *(
            [f"Dense {state.unit.name}: {state.unit.shown(dense)}"]
            if (dense := state.dense_accuracy) is not None
            else []
        ),
        *(f"  {number} x {reason}" for reason, number in reasons.items()),
        _best_line(row, state),
        f"Front: {counted(state.front_length, 'trial')}",
        *filter(None, [_files_line(state)]),
    ]
    if left:
        lines.append(f"About {duration(left)} left, finals included")
    if not view.running and left != 0:
        lines.append(resume_line(config, view.criterion_place))
    return Reply(data, "\n".join(lines))


def _best_line(row: TrialRow | None, state: StudyState) -> str:
    """The trial that `export --trial best` writes: best so far until its finals are done."""
    if row is None:
        return "Best so far: none yet"
    bits = "" if row.bits in (None, FLOAT_BITS) else f", {bits_cell(row.bits)} bits"
    place = f"at {percent(row.size)} of the size{bits}"
    if row.final_accuracy is None:
        return f"Best so far: trial {row.trial}, {_told(state, row.accuracy)} {place}"
    return f"Best: trial {row.trial}, {_told(state, row.final_accuracy, 'final ')} {place}"


def report(arguments: argparse.Namespace) -> Reply:
    """One HTML page of the study, and its pictures."""
    from search.report.files import write_report  # draws, which the other commands do without
    from search.report.page import report_of

    view = open_study(arguments.root, arguments.study)
    folder = Path(arguments.out) if arguments.out else view.folder.path / "report"
    check_writable(folder)
    found = report_of(view)
    page, *pictures = write_report(folder, found)
    data = {"study": arguments.study, "report": page, "pictures": pictures, "words": found.words}
    lines = [found.words["standing"]]
    for one in found.words["recommendations"]:
        ship = "nothing" if one["trial"] is None else f"trial {one['trial']}"
        lines.append(f"{one['target']}: {ship}; {one['why']}")
    lines += [f"{question} {' '.join(said)}" for question, said in found.words["questions"].items()]
    return Reply(data, "\n\n".join([*lines, written_line([page, *pictures])]))


def view(arguments: argparse.Namespace) -> Reply:
    """Serve MLflow's UI until Ctrl-C; a server that the environment names is not ours to start."""
    if not (isinstance(arguments.port, int) and 1 <= arguments.port <= 65535):
        raise UsageError(
            f"--port must be a whole number, 1 <= port <= 65535, got {arguments.port!r}; the default is 5000"
        )
    root = open_root(arguments.root)
    study_id = page = None
    if arguments.study:
        from search.report.page import report_of  # draws, which the other commands do without

        seen = open_study(root, arguments.study)
        study_id, page = seen.folder.read_record()["study_id"], report_of(seen).html.encode()
    place = mlflow_place(root)
    if server := server_named():
        url = f"{server}/{study_page(place, study_id, page)}"
        said = f"MLflow's record is kept by the server of {TRACKING}: {masked(url)}"
        return Reply({"url": masked(url)}, said, then=lambda: _show(url, arguments), is_data=True)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {arguments.port} cannot be used ({error}): choose another with --port"
            ) from None
    open_store(root, TerminalReporter())
    address = f"http://127.0.0.1:{arguments.port}"
    url = f"{address}/{study_page(place, study_id, page)}"
    command = ui_command(root, arguments.port)
    text = f"MLflow UI: {url} (ready in a few seconds; Ctrl-C ends it)\nThe plain command: {shlex.join(command)}"
    then = partial(serve_ui, root, arguments.port, partial(_show, url, arguments))
    return Reply({"url": address, "page": url, "command": command}, text, then=then, is_data=True)


def _show(url: str, arguments: argparse.Namespace) -> None:
    """Open a page in a browser, for a person at a terminal with a screen who did not say otherwise."""
    has_screen = sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if arguments.browser == "on" and not arguments.json and has_screen and sys.stderr.isatty():
        webbrowser.open(url)
