"""What each command does: options in, a reply out. Imported only once a command runs."""

from __future__ import annotations

import argparse
import json
import shlex
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pruning.calibration import Calibration
from pruning.channels import trace_channels
from pruning.codec import dense_bytes
from pruning.criteria import own_function
from pruning.scan import require_subjects
from pruning.scores import restrict_graph
from pruning.shares import FINE_TO_COARSE
from search.config import SearchConfig, make_config, read_study_file
from search.console import TerminalWatcher, duration
from search.curves import pruning_curves
from search.dense import build_model, dense_model
from search.errors import EnvironmentProblem, UsageError
from search.evaluate import Subject, evaluate_untrained
from search.export import (
    MANIFEST,
    Export,
    check_folder,
    check_masks_only,
    choose_trial,
    export_of_trial,
    fine_tuned,
    take_criterion,
    write_export,
)
from search.finals import closing_rows, verdict
from search.folder import open_root
from search.journal import write_durably
from search.lab import (
    Files,
    curve_files,
    default_layer,
    layout_files,
    sensitivity_files,
    share_files,
    weight_files,
    write_files,
)
from search.onnx_file import require_onnx
from search.open import open_study
from search.pictures import profile_png
from search.results import plain_rows
from search.run import SearchResult, resume_command, run_search
from search.scan import cached_profile, profile_path
from search.tables import (
    closing_table,
    counts_line,
    front_table,
    latency_line,
    layer_table,
    percent,
    profile_table,
    render,
    target_table,
)
from search.tracking import open_store, serve_ui, ui_command
from search.train import FINE_TUNE, TRAININGS
from search.user_code import named_criterion
from search.verify import Check, as_json, read_manifest, verify_contents, verify_files
from search.workloads import Workload, get_workload, is_built_in
from spaces.errors import unknown
from spaces.layers import Network
from spaces.policy import (
    GRANULARITIES,
    PruningPolicy,
    check_sparsity,
    parse_object,
    parse_sparsity,
    parts_in,
    parts_of,
)
from spaces.scaling import scaled
from spaces.schedule import Schedule
from spaces.size import dense_footprint, settled
from spaces.targets import STATEMENTS
from spaces.units import stays_whole
from spaces.whole import asked_layers, require_removal, whole_layers

WORKLOAD_OPTIONS = ("workload", "data", "weights", "width")
POLICY_FLAGS = ("granularity", "criterion", "schedule")
SCHEDULE_FLAGS = ("exponent", "ramp", "start", "interval", "rounds", "regrow")
NOTED_DIFFERENCE = 0.05
"""Difference between a share asked for and the one removed from which `apply` names it."""
MAX_POLICY_BYTES = 64 * 2**20
"""A sparsity file above this is refused before it is read."""


@dataclass(frozen=True)
class Reply:
    """What goes to stdout, as data for `--json` and as text, the exit code, and what happens after that."""

    data: Mapping[str, Any]
    text: str
    code: int = 0
    then: Callable[[], None] | None = None


def search(arguments: argparse.Namespace) -> Reply:
    """Start or resume a study."""
    options = read_study_file(Path(arguments.study_file)) if arguments.study_file else {}
    options |= {key: value for key in SearchConfig.model_fields if (value := getattr(arguments, key, None)) is not None}
    if isinstance(options.get("seeds"), str):
        options["seeds"] = {"on": True, "off": False}.get(options["seeds"], options["seeds"])
    if isinstance(options.get("criterion"), str):
        options["criterion"] = named_criterion(options["criterion"])
    config = make_config(**options)
    result = run_search(config, TerminalWatcher())
    met = not result.front.empty and _is_accurate(result)
    return Reply(_search_data(result), _search_text(result), 0 if met else 1)


def _search_data(result: SearchResult) -> dict[str, Any]:
    return {
        "study": result.study,
        "trials": dict(result.counts),
        "best": result.best,
        "front": plain_rows(result.front),
        "finals": [asdict(row) for row in _closing(result.comparison, result.finals, result.trials)],
        "latency": asdict(timed) if (timed := result.comparison and result.comparison.latency) else None,
        "verdict": verdict(result.comparison, result.finals) if result.comparison else None,
        "seconds": {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
    }


def _search_text(result: SearchResult) -> str:
    parts = [f"Study {result.study}: {counts_line(result.counts)}; front of {len(result.front)}"]
    if result.front.empty:
        return parts[0] + f": no feasible trial; see `prunefront front {result.study} --all`"
    parts.append(front_table(result.front))
    if result.comparison:
        parts.append(closing_table(_closing(result.comparison, result.finals, result.trials)))
        parts += [latency_line(result.comparison.latency)] if result.comparison.latency else []
        parts += [verdict(result.comparison, result.finals) or ""]
    parts.append(_accuracy_remark(result))
    parts.append(_speed_remark(result))
    parts.append("Seconds: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items()))
    root = "" if str(result.folder.parent) == "mlruns" else f" --root {shlex.quote(str(result.folder.parent))}"
    parts.append(f"Next: prunefront export {result.study} --trial best --out DIR{root}    or: prunefront view{root}")
    return "\n\n".join(part for part in parts if part)


def _accuracy_remark(result: SearchResult) -> str:
    if result.least_accuracy is None:
        return ""
    best = result.trials.set_index("trial").loc[result.best]
    wanted = f"at least {result.least_accuracy:.2%} on validation data"
    if not _is_accurate(result):
        return f"No network is {wanted}: trial {result.best} comes nearest; give the study more --trials or room."
    return f"The smallest network found of {wanted}: trial {result.best}, {best['size']:.2%} of the dense size."


def _is_accurate(result: SearchResult) -> bool:
    """Whether the best trial has the accuracy asked for; True if none was."""
    best = result.trials.set_index("trial").loc[result.best]
    final = best["final_accuracy"]
    accuracy = final if final is not None and final == final else best["accuracy"]
    return result.least_accuracy is None or accuracy >= result.least_accuracy


def _speed_remark(result: SearchResult) -> str:
    masks = [word for word in result.front["granularity"].unique() if "channel" not in parts_of(word)]
    if masks:
        words = ", ".join(masks)
        return f"Masks ({words}) make the file smaller, not dense kernels faster; only removed channels lower MACs."
    return ""


def _closing(comparison: Any, finals: Mapping[str, Any], trials: Any) -> list[Any]:
    if comparison is None:
        return []
    trial_of = {digest: int(number) for number, digest in zip(trials["trial"], trials["digest"], strict=True)}
    return closing_rows(comparison, finals, trial_of)


def scan(arguments: argparse.Namespace) -> Reply:
    """Sensitivity of every layer."""
    criterion = named_criterion(arguments.criterion) if arguments.criterion else None
    _check_is_no_file(arguments.out)
    config, root, workload = _workload(arguments, granularity=arguments.granularity, criterion=criterion)
    untrained = build_model(workload, config.dense_seed)
    graph = restrict_graph(untrained, trace_channels(untrained, workload.example_input), config.criterion)
    try:
        require_subjects(graph, parts_in(config.granularity))
    except ValueError as error:
        raise UsageError(str(error)) from None
    watcher = TerminalWatcher()
    dense = dense_model(workload, config.dense_seed, root / "cache", config.weights, watcher)
    subject, scanned = Subject.of(workload, dense.model), parts_in(config.granularity)
    with watcher.stage("sensitivity scan") as progress:
        profile = cached_profile(subject, dense, config.criterion, scanned, root / "cache", progress)
    stored = profile_path(workload, dense, config.criterion, scanned, root / "cache")
    folder = Path(arguments.out) if arguments.out else stored.parent
    target = folder / ("profile.json" if arguments.out else stored.name)
    write_durably(target, profile.to_json().encode())
    write_durably(target.with_suffix(".png"), profile_png(profile))
    drawn = write_files(folder, sensitivity_files(profile, subject.network, f"{target.stem}-layers"))
    tables = [profile_table(profile, granularity) for granularity in profile.points]
    head = (
        f"{workload.name}: dense {percent(profile.dense_accuracy, 2)} on {profile.examples} calibration examples; "
        "below, accuracy with one layer pruned to a sparsity, BatchNorm recalibrated, nothing trained"
    )
    pictures = [str(target.with_suffix(".png")), *drawn]
    data = {**json.loads(profile.to_json()), "profile": str(target), "picture": pictures[0], "pictures": pictures}
    return Reply(data, "\n\n".join([head, *tables, _written_line([str(target), *pictures])]))


def _check_is_no_file(folder: str | None, option: str = "--out") -> None:
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError(f"{option} {folder!r} is a file: name a folder")


def inspect(arguments: argparse.Namespace) -> Reply:
    """Layers, costs, groups, obstacles."""
    if arguments.subject and arguments.workload:
        raise UsageError("give the workload once: as argument or by --workload")
    if arguments.weights and not arguments.pictures:
        raise UsageError("--weights has no effect without --pictures DIR, which show them: leave it out, or add that")
    _check_is_no_file(arguments.pictures, "--pictures")
    arguments.workload = arguments.subject or arguments.workload
    asked = _asked_pictures(arguments)
    config, root, workload = _workload(arguments, **asked)
    sparsities = _sparsities(arguments.sparsities or "0.5,0.75", "--sparsities")
    model = build_model(workload, config.dense_seed)
    network = trace_channels(model, workload.example_input).network
    whole = dense_footprint(network)
    head = (
        f"{workload.name}: {whole.parameters:,} parameters, {whole.encoded_bytes:,} bytes, {whole.macs:,} MACs; "
        f"{len(network.layers)} prunable layers, {len(network.groups)} channel groups"
    )
    data = {
        "workload": workload.name,
        "parameters": whole.parameters,
        "bytes": whole.encoded_bytes,
        "macs": whole.macs,
        "layers": [{**asdict(layer), "macs": layer.positions * layer.numel} for layer in network.layers],
        "groups": [asdict(group) for group in network.groups],
    }
    whole_in = _whole_layers(network)
    data["whole"] = whole_in
    parts = [head, layer_table(network), *(f"{word} leaves whole: {', '.join(own)}" for word, own in whole_in.items())]
    data["targets"] = [asdict(one) for one in STATEMENTS]
    if arguments.targets:
        parts.append(target_table())
    if arguments.pictures:
        layer = _drawn_layer(arguments.layer, network, config.granularity)
        dense = dense_model(workload, config.dense_seed, root / "cache", config.weights, TerminalWatcher()).model
        looked_at = (
            dense, trace_channels(dense, workload.example_input), Calibration(*workload.calibration, workload.loss)
        )  # fmt: skip
        how = config.granularity, sparsities, config.criterion
        files = weight_files({"dense": dense}) | share_files(*looked_at, *how) | layout_files(*looked_at, layer, *how)
        data["pictures"] = write_files(Path(arguments.pictures), files)
        data["picture"] = data["pictures"][0]
        parts.append(_written_line(data["pictures"]))
    return Reply(data, "\n\n".join(parts))


def _asked_pictures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Granularities, fine to coarse, and criterion of `inspect`'s pictures."""
    if not arguments.pictures:
        for name in ("granularity", "sparsities", "layer", "criterion"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is about pictures: say where they go by --pictures DIR, or leave it out")
        return {}
    criterion = named_criterion(arguments.criterion) if arguments.criterion else "magnitude-l1"
    return {"granularity": arguments.granularity or FINE_TO_COARSE, "criterion": criterion}


def _sparsities(text: str, option: str) -> tuple[float, ...]:
    """Rising sparsities of an option such as `0.5,0.75`, each above 0 and once."""
    try:
        values = sorted(check_sparsity(float(word), option) for word in text.split(","))
    except ValueError as error:
        said = str(error) if str(error).startswith(option) else f"{option} takes sparsities such as 0.5,0.75"
        raise UsageError(said if "got" in said else f"{said}, got {text!r}") from None
    if values[0] <= 0 or len(set(values)) < len(values):
        raise UsageError(f"{option} takes sparsities above 0, each once, such as 0.5,0.75, got {text!r}")
    return tuple(values)


def _drawn_layer(name: str | None, network: Network, granularities: Sequence[str]) -> str:
    try:
        if name is None:
            return default_layer(network, granularities)
        network.require([name])
    except ValueError as error:
        raise UsageError(f"--layer: {error}") from None
    return name


def _written_line(paths: Sequence[str]) -> str:
    """The files of one folder, or of several."""
    folders = dict.fromkeys(str(Path(path).parent) for path in paths)
    return "\n".join(
        f"Written to {folder}: " + ", ".join(Path(path).name for path in paths if str(Path(path).parent) == folder)
        for folder in folders
    )


def front(arguments: argparse.Namespace) -> Reply:
    """The Pareto set, or all trials."""
    view = open_study(arguments.root, arguments.study, arguments.max_size)
    table = view.trials if arguments.all else view.front
    rows = plain_rows(table)
    if arguments.format == "json":
        text = json.dumps(rows, allow_nan=False)
    elif arguments.format == "csv":
        dicts = {name: table[name].map(json.dumps) for name in ("sparsity", "removal")}
        text = table.assign(**dicts).to_csv(index=False).rstrip("\n")
    else:
        text = front_table(table, with_state=arguments.all) if rows else "no feasible trial yet"
    return Reply({"study": arguments.study, "front": rows}, text)


def status(arguments: argparse.Namespace) -> Reply:
    """Counts, best so far, time left."""
    view = open_study(arguments.root, arguments.study)
    config = view.folder.config
    left = view.seconds_left
    reasons = Counter(reason for reason in view.trials["reason"] if isinstance(reason, str))
    best = view.best
    row = plain_rows(view.trials[view.trials["trial"] == best])[0] if best is not None else None
    data = {
        "study": arguments.study,
        "trials": view.counts,
        "asked": config.trials,
        "reasons": dict(reasons),
        "running": view.running,
        "front_size": len(view.front),
        "best": row,
        "seconds_left": left,
    }
    lines = [
        f"Study {arguments.study}: {counts_line(view.counts)} of {config.trials} asked; "
        + ("running" if view.running else "not running"),
        *(f"  {number} x {reason}" for reason, number in reasons.items()),
        _best_line(row),
        f"Front: {len(view.front)} trials",
    ]
    if left:
        lines.append(f"About {duration(left)} left, finals included")
    if not view.running and left != 0:
        lines.append(_resume_line(config, view.criterion_place))
    return Reply(data, "\n".join(lines))


def _resume_line(config: SearchConfig, place: str | None) -> str:
    if ":" in config.criterion and ".py:" not in config.criterion:
        return f"Resume: by run_search in a Python program that registers criterion {config.criterion!r}"
    return f"Resume: {resume_command(config, place)}"


def _best_line(row: Mapping[str, Any] | None) -> str:
    """The trial that `export --trial best` writes: best so far until its finals are done."""
    if row is None:
        return "Best so far: none yet"
    place = f"at {percent(row['size'])} of the size"
    if row["final_accuracy"] is None:
        return f"Best so far: trial {row['trial']}, accuracy {percent(row['accuracy'], 2)} {place}"
    return f"Best: trial {row['trial']}, final accuracy {percent(row['final_accuracy'], 2)} {place}"


def view(arguments: argparse.Namespace) -> Reply:
    """Serve MLflow's UI until Ctrl-C."""
    if not 1 <= arguments.port <= 65535:
        raise UsageError(f"--port must satisfy 1 <= port <= 65535, got {arguments.port}")
    root = open_root(arguments.root)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {arguments.port} cannot be used ({error}): choose another by --port"
            ) from None
    open_store(root)
    url = f"http://127.0.0.1:{arguments.port}"
    command = ui_command(root, arguments.port)
    text = f"MLflow UI: {url} (Ctrl-C ends it)\nThe plain command: {shlex.join(command)}"
    return Reply({"url": url, "command": command}, text, then=lambda: serve_ui(root, arguments.port))


def export(arguments: argparse.Namespace) -> Reply:
    """Write a trial."""
    seen = open_study(arguments.root, arguments.study)
    chosen = choose_trial(seen, arguments.trial)
    if arguments.torch_prune:
        check_masks_only(chosen.policy)
    _check_files(arguments)
    if arguments.criterion:
        take_criterion(seen, arguments.criterion)
    made, workload, config = export_of_trial(seen, chosen, TerminalWatcher())
    return _written(made, workload, config, arguments)


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is computed, an export that could not be written."""
    check_folder(Path(arguments.out))
    if arguments.onnx:
        require_onnx()


def apply(arguments: argparse.Namespace) -> Reply:
    """Prune by a dict, fine-tune at the recipe's final length, export."""
    policy = _read_policy(arguments)
    if arguments.training not in TRAININGS:
        raise UsageError(unknown("training", arguments.training, TRAININGS))
    if arguments.training != FINE_TUNE:
        if given := [name for name in ("schedule", *SCHEDULE_FLAGS) if getattr(arguments, name) is not None]:
            raise UsageError(f"--{given[0]} has no effect on --training {arguments.training}: leave one of them out")
        policy = replace(policy, schedule="one-shot")
    if arguments.torch_prune:
        check_masks_only(policy)
    levels = _curve_levels(arguments)
    watcher = TerminalWatcher()
    _settle_workload(arguments, watcher)
    config, root, workload = _workload(arguments, round_to=arguments.round_to, seed=arguments.seed)
    untrained = build_model(workload, config.dense_seed)
    graph = trace_channels(untrained, workload.example_input)
    network = restrict_graph(untrained, graph, policy.criterion).network
    try:
        network.require([*policy.sparsity, *policy.removal])
        require_removal(asked_layers(policy), whole_layers(network, policy))
    except ValueError as error:
        raise UsageError(f"{arguments.file}: {error}") from None
    try:
        for level in levels:
            scaled(network, policy, level)
    except ValueError as error:
        raise UsageError(f"--curves: {arguments.file}: {error}") from None
    _check_files(arguments)
    for name in policy.channel_requests():
        if obstacle := network.by_name[name].obstacle:
            watcher.note(f"{name} keeps all its channels: {obstacle}")
    dense = dense_model(workload, config.dense_seed, root / "cache", config.weights, watcher)
    subject = Subject.of(workload, dense.model, config.round_to)
    asked, policy = policy, settled(subject.network, policy)
    tuned = fine_tuned(subject, policy, workload.recipe.final_epochs, arguments.seed, watcher, arguments.training)
    for name, found in tuned.result.achieved.items():
        share = max(policy.sparsity.get(name, 0.0), policy.channel_requests().get(name, 0.0))
        if abs(share - found) > NOTED_DIFFERENCE:
            watcher.note(f"{name}: {share:.1%} asked, {found:.1%} removed")
    made = Export(
        policy, tuned.model, tuned.structure, tuned.result, None, None,
        {"file": Path(arguments.file).name, "seed": arguments.seed, "training": arguments.training},
    )  # fmt: skip
    reply = _written(made, workload, config, arguments)
    if not arguments.pictures:
        return reply
    files = _stage_files(subject, policy, tuned.model, arguments.training)
    if levels:
        epochs = workload.recipe.final_epochs
        files |= curve_files(pruning_curves(subject, asked, levels, epochs, arguments.seed, watcher))
    paths = write_files(Path(arguments.pictures), files)
    return replace(reply, data={**reply.data, "pictures": paths}, text=f"{reply.text}\n{_written_line(paths)}")


def _curve_levels(arguments: argparse.Namespace) -> tuple[float, ...]:
    """Sparsities of `--curves`, once it is sure that its pictures have a place and a meaning."""
    if arguments.pictures and Path(arguments.pictures).resolve().is_relative_to(Path(arguments.out).resolve()):
        raise UsageError(
            f"--pictures {arguments.pictures!r} lies in --out {arguments.out!r}, which takes an export's files only: "
            "name another folder"
        )
    if arguments.curves is None:
        return ()
    if not arguments.pictures:
        raise UsageError("--curves draws a picture: say where it goes by --pictures DIR, or leave it out")
    if arguments.training != FINE_TUNE:
        raise UsageError(f"--curves compares fine-tunes, not --training {arguments.training}: leave one of them out")
    return _sparsities(arguments.curves, "--curves")


def _stage_files(subject: Subject, policy: PruningPolicy, trained: Any, training: str) -> Files:
    pruned = evaluate_untrained(subject, policy)
    stages = {
        "dense": subject.dense,
        "pruned": pruned.model,
        "fine-tuned" if training == FINE_TUNE else training: trained,
    }
    return weight_files({stage: model for stage, model in stages.items() if model is not None})


def _settle_workload(arguments: argparse.Namespace, watcher: TerminalWatcher) -> None:
    """Without --workload take the built-in one that an export's manifest beside the file names, and say so."""
    if arguments.workload:
        return
    manifest = Path(arguments.file).parent / MANIFEST
    if not manifest.is_file():
        raise UsageError(
            f"apply needs --workload W, the network that {arguments.file} is of: digits, fashion-mnist, "
            "package.module:factory or ./file.py:factory"
        )
    read = read_manifest(manifest.parent)
    arguments.workload = _named_workload(read)
    for option in ("data", "width"):
        if getattr(arguments, option) is None:
            setattr(arguments, option, read["workload"].get(option))
    watcher.note(f"workload {arguments.workload}, as {manifest} names it")


def verify(arguments: argparse.Namespace) -> Reply:
    """Check an export."""
    folder = Path(arguments.folder)
    manifest = read_manifest(folder)
    made_for = manifest["workload"]
    spec = arguments.workload or _named_workload(manifest)
    root = open_root(arguments.root)
    workload = get_workload(
        spec, data=arguments.data or made_for.get("data"), width=made_for.get("width"), cache=str(root / "cache")
    )
    checks = verify_files(folder, manifest)
    if all(check.passed for check in checks):
        checks += verify_contents(folder, manifest, workload)
    passed = all(check.passed for check in checks)
    text = render(["check", "result", "detail"], [[c.name, "ok" if c.passed else "FAILED", c.detail] for c in checks])
    closing = "verified" if passed else _failures(checks)
    return Reply({"verified": passed, "checks": as_json(checks)}, f"{text}\n\n{folder}: {closing}", 0 if passed else 1)


def _named_workload(manifest: Mapping[str, Any]) -> str:
    """The built-in workload a manifest names; code it names is not run."""
    spec = manifest["workload"].get("workload")
    if not (isinstance(spec, str) and is_built_in(spec)):
        raise UsageError(
            f"the export names workload {spec!r}, and code named in a file is not run: name it yourself by --workload"
        )
    return spec


def _failures(checks: list[Check]) -> str:
    return "NOT verified: " + ", ".join(check.name for check in checks if not check.passed)


def _workload(arguments: argparse.Namespace, **more: Any) -> tuple[SearchConfig, Path, Workload]:
    """Config, root and workload of a command that runs outside a study."""
    options = {key: getattr(arguments, key, None) for key in WORKLOAD_OPTIONS} | more
    config = make_config(root=arguments.root, **{k: v for k, v in options.items() if v is not None})
    root = open_root(config.root)
    workload = get_workload(config.workload, data=config.data, width=config.width, cache=str(root / "cache"))
    return config, root, workload


def _whole_layers(network: Network) -> dict[str, list[str]]:
    """Granularity of masks -> the layers it leaves whole, for those that leave any."""
    found = {
        word: [layer.name for layer in network.layers if stays_whole(layer, word)]
        for word in GRANULARITIES
        if word != "channel"
    }
    return {word: names for word, names in found.items() if names}


def _read_policy(arguments: argparse.Namespace) -> PruningPolicy:
    """A policy from either file form; the flags complete a bare dict only."""
    path = Path(arguments.file)
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}")
    if path.stat().st_size > MAX_POLICY_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes: a sparsity dict has at most {MAX_POLICY_BYTES}")
    flags = {k: v for k in (*POLICY_FLAGS, *SCHEDULE_FLAGS) if (v := getattr(arguments, k)) is not None}
    if "criterion" in flags:
        flags["criterion"] = named_criterion(flags["criterion"])
    try:
        text = path.read_text()
        if "sparsity" in (data := parse_object(text)) and isinstance(data["sparsity"], dict):
            policy = PruningPolicy.from_dict(data)
            if flags.get("criterion") == policy.criterion:  # where the code of its criterion is
                del flags["criterion"]
            if flags:
                raise ValueError(f"it is a whole policy, which --{next(iter(flags))} cannot change: leave the flag out")
            own_function(policy.criterion)
            return policy
        options = {k: flags.pop(k) for k in SCHEDULE_FLAGS if k in flags}
        schedule = Schedule(flags.pop("schedule", "polynomial"), **options)
        for name in options:
            if name in schedule.idle:
                raise ValueError(f"--{name} has no effect on a schedule that is {schedule.kind}: leave it out")
        return PruningPolicy(parse_sparsity(text), schedule=schedule, **flags)
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _written(made: Export, workload: Workload, config: SearchConfig, arguments: argparse.Namespace) -> Reply:
    out = Path(arguments.out)
    whole = dense_bytes(build_model(workload, config.dense_seed))
    options = {key: getattr(config, key) for key in ("workload", "data", "width")}
    manifest = write_export(made, workload, options, out, whole, arguments.onnx, arguments.torch_prune)
    test = percent(manifest["test_accuracy"], 2)
    text = (
        f"{out}: validation accuracy {percent(manifest['accuracy'], 2)}"
        + (f", test {test}" if test else "")
        + f", {manifest['sparse_bytes']:,} of {whole:,} bytes = {percent(manifest['size_encoded'], 2)}, "
        f"MACs {percent(manifest['macs'])}\n"
        f"Files: {', '.join(manifest['files'])}, manifest.json\n"
        f"Check: prunefront verify {shlex.quote(str(out))}"
        + ("" if is_built_in(config.workload) else f" --workload {shlex.quote(config.workload)}")
    )
    return Reply({"out": str(out), **manifest}, text)
