"""Commands on a network as it is: scan and inspect."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pruning.analysis.granularity_damage import FINE_TO_COARSE
from pruning.analysis.sensitivity_scan import BITS, DEEP, require_subjects
from search.analysis.report_files import (
    default_layer,
    layout_files,
    sensitivity_files,
    share_files,
    weight_files,
    write_files,
)
from search.cli.commands.options import bits_of, placement_asked, sparsities_of, task_or_network, workload_of
from search.cli.commands.reply import Reply, written_line
from search.cli.text_tables import layer_table, profile_table, rounding_table, target_blocks, whole_table
from search.config import SearchConfig
from search.errors import UsageError
from search.files import check_writable, write_durably
from search.metric import SHARE, with_values
from search.networks.names import is_network
from search.progress import TerminalReporter
from search.results.device_support import STATEMENTS
from search.results.figures import profile_png
from search.training.dense_model import build_model, dense_model, masks_note
from search.training.evaluate import PreparedModel
from search.training.profile_cache import brief_note, cached_profile, profile_path, recalibration_note
from search.training.refresh import statistics_note
from search.training.scan_notes import undefined_note
from search.user_code.loading import named_criterion
from search.weights.loading import load_user_weights
from search.workloads import Workload
from search.workloads.base import placed
from search.workloads.splits import only_the_example
from search.workloads.tally import named
from spaces.cost.footprint import dense_footprint, stored_fractions
from spaces.criteria import criterion_word
from spaces.granularity import GRANULARITIES, parts_in, undivided_reason, unpruned_reason
from spaces.network import Network
from spaces.wording import percent


def scan(arguments: argparse.Namespace) -> Reply:
    """Sensitivity of every layer."""
    criterion = named_criterion(arguments.criterion) if arguments.criterion else None
    bits = BITS if arguments.bits is None else bits_of(arguments.bits)
    levels = None if arguments.sparsities is None else sparsities_of(arguments.sparsities, "--sparsities")
    check_writable(arguments.out)
    config, root, workload = workload_of(arguments, granularity=arguments.granularity, criterion=criterion)
    placement = placement_asked(config)
    with placement.running():
        return _scanned(arguments, config, root, placed(workload, placement), bits, levels)


def _scanned(
    arguments: argparse.Namespace,
    config: SearchConfig,
    root: Path,
    workload: Workload,
    bits: Sequence[int],
    levels: Sequence[float] | None,
) -> Reply:
    untrained = PreparedModel.of(workload, build_model(workload, config.dense_seed))
    try:
        require_subjects(untrained.defined_for(config.criterion).graph, parts_in(config.granularity))
    except ValueError as error:
        raise UsageError(str(error)) from None
    watcher = TerminalReporter()
    dense = dense_model(workload, config.dense_seed, root / "cache", config.weights, watcher)
    scanned = parts_in(config.granularity)
    workload, unit = dense.workload, named(dense.workload.metric)
    prepared = untrained.with_weights(dense.model, workload).scored_by(config.criterion)
    if left_out := [layer for layer in prepared.network.prunable if layer.whole]:
        watcher.note(f"left out: {', '.join(layer.name for layer in left_out)} ({left_out[0].whole})")
    with watcher.stage("sensitivity scan") as progress:
        profile = cached_profile(
            prepared, dense, config.criterion, scanned, root / "cache", progress, bits, arguments.whole, levels=levels
        ).with_rounding_to(bits)
    stored = profile_path(
        workload, dense, config.criterion, scanned, root / "cache", brief=profile.brief, levels=levels
    )
    folder = Path(arguments.out) if arguments.out else stored.parent
    target = folder / ("profile.json" if arguments.out else stored.name)
    if arguments.out:
        write_durably(target, profile.to_json().encode())
    write_durably(target.with_suffix(".png"), profile_png(profile, unit))
    draws = arguments.pictures or len(prepared.network.prunable) <= DEEP
    drawn = write_files(folder, sensitivity_files(profile, prepared.network, f"{target.stem}-layers", draws, unit))
    tables = [profile_table(profile, granularity, unit) for granularity in profile.points]
    tables += [rounding_table(profile, unit)] if profile.rounding else []
    changed = "pruned to a sparsity or rounded to bits" if profile.rounding else "pruned to a sparsity"
    how = again = ""
    if profile.is_recalibrated:
        how, again = "BatchNorm recalibrated, ", f", {unit.shown(profile.reference[1])} with BatchNorm recalibrated,"
    dense_value = f"{'' if unit.is_share else f'{unit.name} '}{unit.shown(profile.dense_accuracy)}"
    seen = f"{profile.examples} calibration examples" if profile.examples else "calibration data"
    head = (
        f"{workload.name}: dense {dense_value}{again} on {seen}; below, {unit.name} with one layer {changed}, "
        f"{how}nothing trained"
    )
    notes = recalibration_note(profile, unit), brief_note(profile), undefined_note(profile, unit)
    for note in (*notes, statistics_note(dense.model, workload.example_input)):
        if note:
            watcher.note(note)
    if not draws:
        watcher.note(f"the network has more than {DEEP} layers: --pictures draws the curves of each")
    pictures = [str(target.with_suffix(".png")), *drawn]
    found = with_values(json.loads(profile.to_json()), unit) | ({} if unit == SHARE else {"metric": unit.name})
    data = {**found, "profile": str(target), "picture": pictures[0], "pictures": pictures}
    return Reply(data, "\n\n".join([head, *tables, written_line([str(target), *pictures])]))


def inspect(arguments: argparse.Namespace) -> Reply:
    """Layers, costs, channel groups, and what stays unpruned and why."""
    if arguments.subject and arguments.workload:
        raise UsageError("give the workload once: as an argument or with --workload")
    if arguments.pretrained and not arguments.pictures:
        raise UsageError(
            "--pretrained has no effect without --pictures DIR, which draws them: leave it out, or add --pictures"
        )
    check_writable(arguments.pictures, "--pictures")
    arguments.workload = arguments.subject or arguments.workload
    if arguments.pictures and is_network(arguments.workload or "") and not (arguments.weights or arguments.pretrained):
        raise UsageError(
            "--pictures draws trained weights, which a network alone has not: give --weights or --pretrained"
        )
    asked = _asked_pictures(arguments)
    sparsities = sparsities_of("0.5,0.75" if arguments.sparsities is None else arguments.sparsities, "--sparsities")
    config, root, workload, model = _task_and_network(arguments, asked)
    placement = placement_asked(config)
    fitting = _fitting(model, Path(config.weights)) if config.weights and not arguments.pictures else []
    untrained = PreparedModel.of(workload, model)
    network = untrained.network
    dense_cost, stored = dense_footprint(network), stored_fractions(network)
    head = (
        f"{workload.name}: {dense_cost.parameters:,} parameters, {dense_cost.encoded_bytes:,} bytes, "
        f"{dense_cost.macs:,} MACs; "
        f"{len(network.prunable)} prunable layers with {percent(sum(stored[x.name] for x in network.prunable))} of the "
        f"bytes, {len(network.groups)} channel groups"
    )
    data: dict[str, Any] = {
        "workload": workload.name,
        "parameters": dense_cost.parameters,
        "bytes": dense_cost.encoded_bytes,
        "macs": dense_cost.macs,
        "layers": [
            {**asdict(layer), "macs": layer.positions * layer.numel, "share": stored[layer.name]}
            for layer in network.layers
        ],
        "shares": {name: stored[name] for name in ("other parameters", "buffers", "header")},
        "other_macs": network.other_macs,
        "uncounted": list(network.uncounted),
        "groups": [asdict(group) for group in network.groups],
    }
    unpruned = data["whole"] = _unpruned_layers(network)
    parts = [head, layer_table(network), whole_table(network)]
    parts += _unpruned_lines(network, unpruned)
    parts += [f"MACs leave out {'; '.join(network.uncounted)}"] if network.uncounted else []
    parts += [said[:1].upper() + said[1:]] if (said := statistics_note(model, workload.example_input)) else []
    parts += ["\n".join(fitting)] if fitting else []
    data["targets"] = [asdict(one) for one in STATEMENTS]
    if arguments.targets:
        parts.append(target_blocks())
    if arguments.pictures:
        granularities = parts_in(config.granularity)
        layer = _drawn_layer(arguments.layer, network, granularities)
        there = placed(workload, placement)
        with placement.running():
            trained = dense_model(there, config.dense_seed, root / "cache", config.weights, TerminalReporter()).model
        dense = trained.to("cpu")
        importance = untrained.with_weights(dense).importance(config.criterion)
        files = weight_files({"dense": dense}) | share_files(importance, granularities, sparsities)
        files |= layout_files(importance, layer, granularities, sparsities)
        data["pictures"] = write_files(Path(arguments.pictures), files)
        data["picture"] = data["pictures"][0]
        parts.append(written_line(data["pictures"]))
    return Reply(data, "\n\n".join(parts))


def _fitting(model: nn.Module, path: Path) -> list[str]:
    """Load a weights file, which is refused if it does not fit; what there is to say of it."""
    said: list[str] = []
    if masks := load_user_weights(model, path, said.append):
        said.append(masks_note(path, masks))
    return [f"weights {path.name} fit the network", *said]


def _task_and_network(
    arguments: argparse.Namespace, asked: Mapping[str, Any]
) -> tuple[SearchConfig, Path, Workload, nn.Module]:
    """Config, root, workload and untrained network; of data sets only the example input is read if that is enough."""

    if not arguments.pictures:
        with only_the_example():
            config, root, workload = task_or_network(arguments, **asked)
            return config, root, workload, build_model(workload, config.dense_seed)
    config, root, workload = task_or_network(arguments, **asked)
    return config, root, workload, build_model(workload, config.dense_seed)


def _asked_pictures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Granularities, fine to coarse, and criterion of `inspect`'s pictures."""
    if not arguments.pictures:
        for name in ("granularity", "sparsities", "layer", "criterion"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is about pictures: say where they go with --pictures DIR, or leave it out")
        return {}
    criterion = named_criterion(arguments.criterion) if arguments.criterion else "magnitude-l1"
    defined = criterion_word(criterion).granularities or FINE_TO_COARSE
    return {"granularity": arguments.granularity or defined, "criterion": criterion}


def _drawn_layer(name: str | None, network: Network, granularities: Sequence[str]) -> str:
    try:
        if name is None:
            return default_layer(network, granularities)
        network.require([name])
    except ValueError as error:
        raise UsageError(f"--layer: {error}") from None
    return name


def _unpruned_layers(network: Network) -> dict[str, list[str]]:
    """Granularity of masks -> the layers it leaves unpruned, for those that leave any."""
    found = {
        word: [layer.name for layer in network.prunable if unpruned_reason(layer, word)]
        for word in GRANULARITIES
        if word != "channel"
    }
    return {word: names for word, names in found.items() if names}


def _unpruned_lines(network: Network, unpruned: Mapping[str, Sequence[str]]) -> list[str]:
    """One for all granularities that leave the same layers unpruned."""
    layers = {layer.name: layer for layer in network.prunable}
    words_of: dict[tuple[str, ...], list[str]] = {}
    for word, names in unpruned.items():
        words_of.setdefault(tuple(names), []).append(word)
    lines = []
    for names, words in words_of.items():
        is_undivided = all(
            not layer.whole and undivided_reason(word, layer.shape, layer.inputs)
            for word in words
            for layer in map(layers.__getitem__, names)
        )
        *first, last = words
        leave = f"{', '.join(first)} and {last} leave" if first else f"{last} leaves"
        why = " (M must divide the inputs of a layer)" if is_undivided else ""
        lines.append(f"{leave} whole: {', '.join(names)}{why}")
    return lines
