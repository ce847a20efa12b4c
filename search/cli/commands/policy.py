"""Commands on one policy: export, apply, verify."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pruning.importance.own_criteria import own_function
from search.analysis.pruning_curves import pruning_curves
from search.analysis.report_files import Files, curve_files, weight_files, write_files
from search.cli.commands.options import placement_asked, sparsities_of, workload_of
from search.cli.commands.reply import Reply, written_line
from search.cli.parser import given_options
from search.cli.stages import Stage, stages_data, stages_table
from search.cli.text_tables import render
from search.config import SearchConfig, make_config
from search.errors import EnvironmentProblem, UsageError
from search.export.choose import Chosen
from search.export.manifest import MANIFEST, largest_files, read_manifest
from search.export.of_study import check_export, export_study, note_dead, require_whole, write_network
from search.export.rebuild import Export, fine_tuned, moved_to_cpu
from search.export.registry import check_name
from search.export.summary import summary
from search.export.verify import Check, as_json, verify_contents, verify_files
from search.export.write import Written, check_masks_only
from search.files import check_writable, read_text
from search.metric import with_values
from search.networks.names import LARGEST, is_ordinary
from search.options import RECIPE_OPTIONS, WORKLOAD_FORMS, key_of
from search.progress import TerminalReporter
from search.results.policy_figure import policy_figure
from search.results.selection import is_dead
from search.results.view import open_study
from search.store.outline import NetworkOutline
from search.training.asked_recipe import require_followed
from search.training.chance import chance_accuracy
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import Evaluation, PreparedModel, evaluate_untrained
from search.training.scoring import test_scores
from search.training.train import FINE_TUNE, TRAININGS, scratch_epochs
from search.user_code.loading import named_criterion
from search.workloads import Workload, get_workload, is_built_in
from search.workloads.base import placed, with_dense_value
from search.workloads.run import FINAL
from search.workloads.tally import named
from spaces.allocation.scaling import scaled
from spaces.bits import FLOAT_BITS
from spaces.cost.counts import RelativeCost
from spaces.cost.effect import as_removed, asked_layers, require_removal, unpruned_layers
from spaces.network import Network
from spaces.policy import PruningPolicy, parse_sparsity
from spaces.printable import LONGEST_WORD, shortened
from spaces.schedule import EXPONENT_OF, Schedule
from spaces.strict_json import parse_object
from spaces.validation import is_number, unknown
from spaces.wording import percent

POLICY_FLAGS = ("granularity", "criterion", "schedule", "bits")
SCHEDULE_FLAGS = ("exponent", "ramp", "start", "interval", "rounds", "regrow")
OF_FINE_TUNES = ("schedule", *SCHEDULE_FLAGS, "epochs", "learning_rate")
"""Flags that say something of a fine-tune, and nothing of a training from fresh weights."""
WIDEST = 2.0
"""Width factor up to which a manifest's is taken: 37 million parameters."""
WHOLE = RelativeCost(encoded=1.0, nonzero=1.0, macs=1.0, macs_nonzero=1.0)
"""What the dense network costs, as shares of itself."""
NOTED_DIFFERENCE = 0.05
"""Difference between a share asked for and the one removed from which `apply` names it."""


def export(arguments: argparse.Namespace) -> Reply:
    """Write a trial."""
    if arguments.register is not None:
        check_name(arguments.register)
    seen = open_study(arguments.root, arguments.study)
    out = Path(arguments.out)
    found = export_study(
        seen, arguments.trial, out, TerminalReporter(), workload=arguments.workload,
        criterion=arguments.criterion, onnx=arguments.onnx, torch_prune=arguments.torch_prune,
        onnx_int8=arguments.onnx_int8, register=arguments.register,
    )  # fmt: skip
    reply = _reply_to(found.written, found.made, found.config, out, found.chosen)
    if one := found.registered:
        known = "" if one.is_new else ", which this very network was already: no other version was made"
        data = {**reply.data, "registered": one.uri, "registered_before": not one.is_new}
        reply = replace(reply, data=data, text=f"{reply.text}\nRegistered: {one.uri}{known}")
    values = {name: value for name, value in seen.state.dense_scores.items() if name != "dense_accuracy"}
    return replace(reply, data={**reply.data, **values})


def apply(arguments: argparse.Namespace) -> Reply:
    """Prune by a dict, fine-tune at the recipe's final length, export."""
    policy = _read_policy(arguments)
    if arguments.training not in TRAININGS:
        raise UsageError(unknown("training", arguments.training, TRAININGS))
    if arguments.training != FINE_TUNE:
        if given := [name for name in OF_FINE_TUNES if getattr(arguments, name) is not None]:
            raise UsageError(
                f"--{key_of(given[0])} has no effect on --training {arguments.training}: leave one of them out"
            )
        policy = replace(policy, schedule=Schedule("one-shot"))
    if arguments.torch_prune:
        check_masks_only(policy)
    levels = _curve_levels(arguments)
    watcher = TerminalReporter()
    _settle_workload(arguments, watcher)
    asked = given_options(arguments, RECIPE_OPTIONS)
    config, root, workload = workload_of(arguments, round_to=arguments.round_to, seed=arguments.seed, **asked)
    recipe = workload.recipe.of_final(config.epochs, config.learning_rate, config.batch)
    workload = replace(workload, recipe=recipe)
    placement = placement_asked(config)
    untrained = PreparedModel.of(workload, build_model(workload, config.dense_seed), config.round_to)
    network = untrained.defined_for(policy.criterion).network
    _check_policy(arguments, network, policy, levels)
    check_export(Path(arguments.out), arguments.onnx or arguments.onnx_int8)
    require_followed(workload, untrained.dense, config.asked_recipe, recipe.final_epochs, FINAL)
    for name in policy.channel_requests():
        if reason := network.by_name[name].obstacle:
            watcher.note(f"{name} keeps all its channels: {reason}")
    with placement.running():
        there = placed(workload, placement)
        dense = dense_model(there, config.dense_seed, root / "cache", config.weights, watcher)
        prepared = untrained.with_weights(dense.model, dense.workload).scored_by(policy.criterion)
        workload = with_dense_value(workload, dense.workload.metric)
        return _applied(arguments, config, workload, prepared, dense.accuracy, policy, levels, watcher)


def _applied(
    arguments: argparse.Namespace,
    config: SearchConfig,
    workload: Workload,
    prepared: PreparedModel,
    dense_accuracy: float,
    policy: PruningPolicy,
    levels: Sequence[float],
    watcher: TerminalReporter,
) -> Reply:
    """`apply` where the policy fits: it is carried out and trained where `prepared` is, and exported on the CPU."""
    network = prepared.network
    for name in asked_layers(policy):
        if why := prepared.network.by_name[name].whole:
            watcher.note(f"{name} stays whole: {why}")
    asked, policy = policy, as_removed(prepared.network, policy)
    chance = chance_accuracy(workload)
    note_dead("the dense model", dense_accuracy, chance, watcher)
    epochs = workload.recipe.final_epochs
    tuned = fine_tuned(prepared, policy, epochs, config.seed, watcher, arguments.training)
    if arguments.training == FINE_TUNE:
        trained, how = epochs, "fine-tuned"
    else:
        trained = scratch_epochs(workload, policy, prepared.graph, arguments.training)
        how = "trained from fresh weights"
    name, how = how, f"{how} for {trained:.3g} epoch" + ("" if trained == 1 else "s")
    if not is_dead(dense_accuracy, chance):
        note_dead(f"the pruned network, {how},", tuned.result.measured.accuracy, chance, watcher)
    for note in _differences(asked, tuned, network):
        watcher.note(note)
    pruned = evaluate_untrained(prepared, policy)
    model, structure, result = moved_to_cpu(tuned, workload)
    stages = [
        Stage("dense", dense_accuracy, _tested("dense", prepared.dense, prepared.workload, watcher), WHOLE),
        Stage("pruned", pruned.result.accuracy, None, pruned.result.shares),
        Stage(name, result.accuracy, _tested(name, model, workload, watcher), result.shares),
    ]
    made = Export(
        policy, model, structure, result, stages[-1].test_accuracy, None,
        {"file": Path(arguments.file).name, "seed": config.seed, "training": arguments.training},
    )  # fmt: skip
    out = Path(arguments.out)
    written = write_network(made, workload, config, out, arguments.onnx, arguments.torch_prune, arguments.onnx_int8)
    paths, unit = list[str](), named(workload.metric)
    if arguments.pictures:
        files = _stage_files(prepared.dense, pruned.model, model, policy, arguments.training)
        if levels:
            files |= curve_files(pruning_curves(prepared, asked, levels, epochs, config.seed, watcher), unit)
        layers, title = (
            [layer.name for layer in network.prunable],
            f"{Path(arguments.file).name}: what goes of each layer",
        )
        shares = NetworkOutline.of(network).parameter_shares()
        files |= {"policy.png": policy_figure(asked, layers, title, shares).png()}
        paths = write_files(Path(arguments.pictures), files)
    require_whole(written, out)
    told: dict[str, Any] = {
        **with_values({"dense_accuracy": dense_accuracy}, unit),
        "epochs": trained,
        "networks": stages_data(stages, unit),
    }
    reply, first = _reply_to(written, made, config, out), unit.shown(dense_accuracy)
    text = f"Dense {unit.name}: {first} on validation data; {how}\n\n{stages_table(stages, unit)}\n\n{reply.text}"
    if paths:
        told, text = told | {"pictures": paths}, f"{text}\n{written_line(paths)}"
    return replace(reply, data={**told, **reply.data}, text=text)


def _check_policy(
    arguments: argparse.Namespace, network: Network, policy: PruningPolicy, levels: Sequence[float]
) -> None:
    """Refuse, before any training, a policy of another network, and one of which nothing would go."""
    words, bits = policy.granularity, policy.bits
    by_layer = [*(() if isinstance(words, str) else words), *(() if isinstance(bits, int) else bits)]
    try:
        network.require([*policy.sparsity, *policy.removal, *by_layer])
        require_removal(asked_layers(policy), unpruned_layers(network, policy))
    except ValueError as error:
        raise UsageError(f"{arguments.file}: {error}") from None
    try:
        for level in levels:
            scaled(network, policy, level)
    except ValueError as error:
        raise UsageError(f"--curves: {arguments.file}: {error}") from None
    if not (asked_layers(policy) or policy.is_rounded):
        raise UsageError(
            f"{arguments.file}: nothing to remove: it gives no layer a sparsity above 0, such as 0.5; "
            "--bits 8 rounds whole layers"
        )


def _differences(asked: PruningPolicy, tuned: Evaluation, network: Network) -> list[str]:
    """What went of a layer where that is not what was asked: of its units, and of channels that go before masks.

    Rounding makes zeros of its own, so that of a rounded layer more may go.
    """
    found = [
        (name, share, min(gone, share) if asked.bits_of(name) < FLOAT_BITS else gone, "")
        for name, gone in tuned.result.achieved.items()
        for share in [asked.sparsity.get(name, 0.0)]
    ]
    for name, share in asked.removal.items():
        layer = network.by_name[name]
        stay, channels = tuned.network[0].get_parameter(name).shape[layer.output_dim], layer.shape[layer.output_dim]
        found.append((name, share, 1 - stay / channels, " of its channels"))
    return [
        f"{name}: {percent(share)}{of} asked, {percent(gone)} removed"
        for name, share, gone, of in found
        if abs(share - gone) > NOTED_DIFFERENCE
    ]


def _curve_levels(arguments: argparse.Namespace) -> tuple[float, ...]:
    """Sparsities of `--curves`, once it is sure that its pictures have a place and a meaning."""
    check_writable(arguments.pictures, "--pictures")
    if arguments.pictures and Path(arguments.pictures).resolve().is_relative_to(Path(arguments.out).resolve()):
        raise UsageError(
            f"--pictures {arguments.pictures!r} lies in --out {arguments.out!r}, which takes an export's files only: "
            "name another folder"
        )
    if arguments.curves is None:
        return ()
    if not arguments.pictures:
        raise UsageError("--curves draws a picture: say where it goes with --pictures DIR, or leave it out")
    if arguments.training != FINE_TUNE:
        raise UsageError(f"--curves compares fine-tunes, not --training {arguments.training}: leave one of them out")
    return sparsities_of(arguments.curves, "--curves")


def _stage_files(
    dense: nn.Module, pruned: nn.Module | None, trained: nn.Module, policy: PruningPolicy, training: str
) -> Files:
    stages = {"dense": dense, "pruned": pruned, "fine-tuned" if training == FINE_TUNE else training: trained}
    found = {stage: model for stage, model in stages.items() if model is not None}
    return weight_files(found, policy.bits_of if policy.is_rounded else None)


def _tested(name: str, model: nn.Module, workload: Workload, watcher: TerminalReporter) -> float | None:
    """Accuracy on test data; None, which is said, where it has none."""
    found = test_scores(model, workload)
    if isinstance(found, str):
        watcher.note(f"the {name} network: {found}")
        return None
    return found.accuracy


def _settle_workload(arguments: argparse.Namespace, watcher: TerminalReporter) -> None:
    """Without --workload take the built-in one that an export's manifest beside the file names, and say so."""
    if arguments.workload:
        return
    manifest = Path(arguments.file).parent / MANIFEST
    if not manifest.is_file():
        raise UsageError(
            f"apply needs --workload W, the network that {arguments.file} was made for: "
            f"{', '.join(WORKLOAD_FORMS[:-1])} or {WORKLOAD_FORMS[-1]}"
        )
    read = read_manifest(manifest.parent)
    arguments.workload = _named_workload(read)
    arguments.width, arguments.network = _width(arguments, read), _network(arguments, read)
    watcher.note(f"workload {arguments.workload}, as {manifest} names it; {_data_used(arguments, read)}")


def verify(arguments: argparse.Namespace) -> Reply:
    """Check an export."""
    folder = Path(arguments.folder)
    manifest = read_manifest(folder)
    spec, width = arguments.workload or _named_workload(manifest), _width(arguments, manifest)
    used = _data_used(arguments, manifest)
    try:
        network = _network(arguments, manifest)
        cache = str(Path(arguments.root, "cache"))
        workload = get_workload(spec, data=arguments.data, width=width, network=network, cache=cache)
    except (UsageError, EnvironmentProblem) as error:
        raise type(error)(str(error) if arguments.data else f"{error}; {used}") from error
    checks = verify_files(folder, manifest, largest_files(build_model(workload, seed=0)))
    if all(check.passed for check in checks):
        checks += verify_contents(folder, manifest, workload)
    passed = all(check.passed for check in checks)
    text = render(["check", "result", "detail"], [[c.name, "ok" if c.passed else "FAILED", c.detail] for c in checks])
    closing = "verified" if passed else _failures(checks)
    data = {"verified": passed, "data": arguments.data, "checks": as_json(checks)}
    return Reply(data, f"{text}\n\n{folder}: {closing}; {used}", 0 if passed else 1)


def _data_used(arguments: argparse.Namespace, manifest: Mapping[str, Any]) -> str:
    """Which data a command takes: never those a manifest names, which may be anybody's."""
    if arguments.data:
        return f"data from {str(Path(arguments.data).resolve())!r}, as --data names them"
    named = manifest["workload"].get("data")
    if named is None:
        return "data from where the workload itself takes them"
    said = shortened(repr(named), LONGEST_WORD)
    return f"data from where the workload itself takes them, not from {said}, which the manifest names: --data can"


def _width(arguments: argparse.Namespace, manifest: Mapping[str, Any]) -> float | None:
    """The width asked for, else the manifest's, which is not believed to be of a giant."""
    width = manifest["workload"].get("width")
    if arguments.width is not None or width is None:
        return make_config(width=arguments.width).width
    if not (is_number(width) and 0 < width <= WIDEST):
        raise UsageError(
            f"the export names width {shortened(repr(width), LONGEST_WORD)}, and none above {WIDEST:g} is taken from a "
            "file: give it yourself with --width"
        )
    return width


def _network(arguments: argparse.Namespace, manifest: Mapping[str, Any]) -> str | None:
    """The network asked for, else the manifest's, which is not believed to be of a giant."""
    network = manifest["workload"].get("network")
    if arguments.network is not None or network is None:
        return arguments.network
    if not (isinstance(network, str) and is_ordinary(network)):
        raise UsageError(
            f"the export names network {shortened(repr(network), LONGEST_WORD)}, and none but torchvision's of up to "
            f"{LARGEST:,} parameters are taken from a file: give it yourself with --network"
        )
    return network


def _named_workload(manifest: Mapping[str, Any]) -> str:
    """The built-in workload a manifest names; code it names is not run."""
    spec = manifest["workload"].get("workload")
    if not (isinstance(spec, str) and is_built_in(spec)):
        raise UsageError(
            f"the export names workload {shortened(repr(spec), LONGEST_WORD)}, and code named in a file is not run: "
            "name it yourself with --workload"
        )
    return spec


def _failures(checks: list[Check]) -> str:
    return "NOT verified: " + ", ".join(check.name for check in checks if not check.passed)


def _read_policy(arguments: argparse.Namespace) -> PruningPolicy:
    """A policy from either file form; the flags complete a bare dict only."""
    path = Path(arguments.file)
    if not path.exists():
        raise UsageError(f"no file {str(path)!r}")
    flags = {k: v for k in (*POLICY_FLAGS, *SCHEDULE_FLAGS) if (v := getattr(arguments, k)) is not None}
    if "criterion" in flags:
        flags["criterion"] = named_criterion(flags["criterion"])
    try:
        text = read_text(path)
        if "sparsity" in (data := parse_object(text)) and isinstance(data["sparsity"], dict):
            policy = PruningPolicy.from_dict(data)
            if flags.get("criterion") == policy.criterion:  # where the code of its criterion is
                del flags["criterion"]
            if flags:
                raise ValueError(
                    f"it is a complete policy, which --{next(iter(flags))} cannot change: leave the flag out"
                )
            own_function(policy.criterion)
            return policy
        options = {k: flags.pop(k) for k in SCHEDULE_FLAGS if k in flags}
        if "exponent" in options and flags.get("schedule") in EXPONENT_OF:
            raise ValueError(f"--exponent has no effect on a schedule that is {flags['schedule']}: leave it out")
        schedule = Schedule(flags.pop("schedule", "polynomial"), **options)
        for name in options:
            if name in schedule.idle:
                raise ValueError(f"--{name} has no effect on a schedule that is {schedule.kind}: leave it out")
        return PruningPolicy(parse_sparsity(text), schedule=schedule, **flags)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _reply_to(written: Written, made: Export, config: SearchConfig, out: Path, chosen: Chosen | None = None) -> Reply:
    """What is said of an export that stands; `chosen` is what of a study."""
    workload = "" if is_built_in(config.workload) else f" --workload {shlex.quote(config.workload)}"
    which = (chosen.name, chosen.runs) if chosen else ()
    text = f"{summary(out, written.manifest, made, *which)}\nCheck: prunefront verify {shlex.quote(str(out))}{workload}"
    return Reply({"out": str(out), **written.manifest}, text)
