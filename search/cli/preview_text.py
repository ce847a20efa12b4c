"""What `search --dry-run` shows."""

from __future__ import annotations

from typing import Any

from pruning.latency import NETWORK_SECONDS, TABLE_SECONDS
from search.cli.text_tables import render
from search.config import FULL
from search.progress import duration
from search.study.preview import Preview
from spaces.wording import counted, percent

SHOWN_LAYERS = 40
"""Prunable layers of a network that are listed one by one in text; `--json` has all."""


def preview_data(found: Preview) -> dict[str, Any]:
    """Everything, as plain data; sizes are shares of the dense model."""
    config = found.config
    return {
        "study": found.folder.name,
        "is_new": found.finished is None,
        "device": found.device,
        "trials": {"asked": config.trials, "finished": found.finished or 0},
        "size_metric": config.size_metric,
        "max_size": config.max_size,
        "reachable": list(found.reachable),
        "searched": list(found.searched),
        "granularities": [
            {"granularity": name, "smallest": floor, "left_out": found.left_out.get(name)}
            for name, floor in found.floors.items()
        ],
        "bits": list(config.bits),
        "mixed": config.mixed,
        "layers": [
            {"layer": one.name, "shape": list(one.shape), "whole": one.whole, "channels_stay": one.obstacle}
            for one in found.layers
        ],
        "dense_accuracy": found.dense_accuracy,
        "has_scan": found.has_scan,
        "has_latency_table": found.has_latency_table,
        "first_trials": [vars(one) for one in found.first.trials],
        "first_trials_exact": found.first.exact,
        "finals": {
            "finalists": config.finalists,
            "repeats": config.final_repeats if config.finalists else 0,
            "baselines": list(found.baselines),
        },
        "seconds": found.duration.seconds,
        "seconds_basis": found.duration.basis,
    }


def preview_text(found: Preview) -> str:
    """The same for a person."""
    parts = [_begin(found), "\n".join(_space_lines(found))]
    parts.append(
        render(
            ["granularity", "smallest size", "used"],
            [[name, percent(floor), _fate(found, name)] for name, floor in found.floors.items()],
        )
    )
    rows = [[one.name, "x".join(map(str, one.shape)), _prunes(one.whole), _channels(one)] for one in found.layers]
    table = render(["layer", "shape", "masks", "channels"], rows[:SHOWN_LAYERS], ["layer"], ["shape"])
    parts.append(table + (f"\nand {len(rows) - SHOWN_LAYERS} more" if len(rows) > SHOWN_LAYERS else ""))
    parts += _first_parts(found)
    parts.append(_closing_line(found))
    spent = found.duration
    took = "not known" if spent.seconds is None else f"about {duration(spent.seconds)}"
    parts.append("Time: none, all that is asked for is done" if spent.seconds == 0 else f"Time: {took} ({spent.basis})")
    parts.append("Nothing is written, and no trial was trained: leave out --dry-run to search.")
    return "\n\n".join(parts)


def _begin(found: Preview) -> str:
    trials, done = found.config.trials, found.finished
    if done is None:
        begin = f"Study {found.folder.name} would begin: {counted(trials, 'trial')} on {found.device}"
    else:
        goes_on = "has ended" if found.duration.seconds == 0 else "would go on"
        begin = f"Study {found.folder.name} {goes_on}: {done} of {counted(trials, 'trial')} done; on {found.device}"
    dense = (
        f"Dense model: {found.dense_value} on validation data"
        if found.dense_value
        else ("Dense model: to be trained first; no cached one fits")
    )
    scan = {True: "Sensitivity scan: cached", False: "Sensitivity scan: to be made", None: "Sensitivity scan: none"}
    wanted = [f"Wanted: the smallest network with {found.wanted}"] if found.wanted else []
    return "\n".join([begin, dense, *wanted, scan[found.has_scan], _latency_line(found)])


def _latency_line(found: Preview) -> str:
    """Whether latency is measured, and for how long."""
    if found.has_latency_table is None:
        return "Latency: not predicted, MACs are the third objective"
    if found.has_latency_table:
        return "Latency: predicted by a table that is there"
    return f"Latency: predicted by a table that is measured first, in about {TABLE_SECONDS:.0f} s at most"


def _space_lines(found: Preview) -> list[str]:
    config = found.config
    (least, most), (low, high) = found.reachable, found.searched
    each = " (one a layer)" if config.mixed else ""
    return [
        f"Size ({config.size_metric}): reachable {percent(least, 2)} to {percent(most, 2)} of dense, "
        f"limit {percent(config.max_size, 2)}",
        f"Searched: {percent(low, 2)} to {percent(high, 2)}, bits {', '.join(map(str, config.bits))}{each}, "
        f"schedules {', '.join(config.schedule)}",
    ]


def _fate(found: Preview, name: str) -> str:
    return f"no: {reason}" if (reason := found.left_out.get(name)) else "yes"


def _prunes(whole: str | None) -> str:
    return f"no: {whole}" if whole else "yes"


def _channels(layer: Any) -> str:
    return f"stay: {layer.obstacle}" if layer.obstacle else "yes"


def _first_parts(found: Preview) -> list[str]:
    first = found.first
    if not first.trials:
        return ["First trials: the sampler's, without known allocations"]
    rows = [[n, one.allocator, one.granularity, one.bits, percent(one.size)] for n, one in enumerate(first.trials)]
    table = render(["trial", "allocation", "granularity", "bits", "size" if first.exact else "size at most"], rows)
    if first.exact:
        return [f"First trials:\n{table}"]
    why = (
        "These are not final before the dense model and its scan are there: one that "
        "removes the same units as an earlier one gives its place to the next."
    )
    return [f"First trials:\n{table}\n{why}"]


def _closing_line(found: Preview) -> str:
    config = found.config
    if not config.finalists:
        return "Finals: none"
    rules, runs = ", ".join(found.baselines), counted(config.final_repeats, "run")
    finalists = counted(config.finalists, "finalist")
    if config.comparison == FULL:
        said = f"Finals: up to {finalists} and the baselines {rules}, {runs} each"
    else:
        lengths = "1 run each"
        if config.final_repeats > 1:
            lengths = f"{runs} of the best and of its baseline, fewer of others"
        said = f"Finals: up to {finalists}, each beside the best of {rules} at its size; {lengths}"
    if config.latency_command:
        return f"{said}; then your command times them"
    timed = f"; then they are timed side by side, for up to {NETWORK_SECONDS:.0f} s"
    return said if found.has_latency_table is None else said + timed
