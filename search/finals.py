"""The honest end of a study: finalists and static baselines, fine-tuned at full length and tested once each."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from pruning.codec import dense_bytes
from pruning.evidence import unit_evidence
from pruning.latency import describe_device
from pruning.quantize import nonzero_share_int8, quantize_int8
from search.attempts import Attempt, give_up_on
from search.blame import told
from search.checkpoints import load_model, save_model
from search.clock import StudyClock
from search.config import SearchConfig
from search.console import Watcher, duration
from search.dense import build_model
from search.entries import LARGEST_SHARE
from search.errors import Refused
from search.evaluate import Evaluation, Subject, evaluate_policy, failed
from search.folder import StudyFolder
from search.journal import Journal, write_durably
from search.latency import time_finals
from search.reading import read_text
from search.records import COMPLETE, FinalRecord, TrialResult
from search.refresh import refresh_statistics_
from search.results import FinalScore, score_finals
from search.train import Progress, Scores, score
from search.user_code import pass_signals_on
from spaces.allocation import Evidence, Unreachable
from spaces.errors import is_number
from spaces.latency import TimedNetwork, TimedNetworks
from spaces.policy import PruningPolicy, parse_object, parts_of
from spaces.seeds import allocated
from spaces.size import effect
from spaces.space import Space

COMPARISON_VERSION = 2
READ_VERSIONS = (1, 2)
"""Version 1 had no `latency`."""
BASELINES = ("uniform", "global", "lamp")
NOISE_FACTOR = 2.0
"""A difference of means below this many standard errors is called noise."""
ALIKE = 0.03
"""Sizes and MACs that differ by this share at most count as equal."""
MANY_EXAMPLES = 1000
"""Of more test examples, one is less than a tenth of a point."""


@dataclass(frozen=True)
class Reference:
    """A network that needs no fine-tune: the dense model, or its int8 rounding."""

    validation_accuracy: float
    test_accuracy: float
    size_encoded: float
    size_nonzero: float


@dataclass(frozen=True)
class Comparison:
    """What finalists are held against.

    Attributes:
        dense: the unpruned model.
        int8: dense with weights rounded to 8 bits.
        baselines: static allocator -> policy digest, each landed on the largest size target in `granularity`; the
            digest is a finalist's, or an earlier one's, if it removes the same. Allocators that cannot reach the limit
            are absent.
        granularity: of the baselines.
        finalists: policy digests, in the order they were chosen.
        latency: the dense model's, and by policy digest the finalists' and baselines', of the runs an export ships;
            None where latency plays no part in the study.
        test_examples: how many the test accuracies are of; None in older comparisons.
    """

    dense: Reference
    int8: Reference
    baselines: Mapping[str, str]
    granularity: str
    finalists: tuple[str, ...]
    latency: TimedNetworks | None = None
    test_examples: int | None = None


def compare_finals(
    config: SearchConfig,
    folder: StudyFolder,
    subject: Subject,
    space: Space,
    finalists: Sequence[PruningPolicy],
    clock: StudyClock,
    watcher: Watcher,
) -> Comparison:
    """Fine-tune and test what has not been yet, run by run, and write down what is compared."""
    baselines = baseline_policies(subject, space, finalists)
    done = {(final.digest, final.seed) for final in folder.journal.finals()}
    named = {f"finalist {n}": policy for n, policy in enumerate(finalists, 1)} | baselines
    seeds = [config.seed + 1 + n for n in range(config.final_seeds)]
    runs = {(policy.digest, seed): (name, policy) for name, policy in named.items() for seed in seeds}
    missing = {run: what for run, what in runs.items() if run not in done}
    began = clock.seconds
    for number, ((digest, seed), (name, policy)) in enumerate(missing.items(), 1):
        attempt = Attempt(folder.journal.folder, f"{digest}-{seed}")
        if attempt.deaths and not attempt.failure:
            watcher.note(f"the final run of {name} begins again, it was cut off {attempt.deaths[-1]}")
        with watcher.stage(f"final run {number}/{len(missing)} ({name}, seed {seed})") as progress:
            evaluation, tested = _evaluated(config, subject, policy, seed, attempt, progress)
        if evaluation.model is not None:
            save_model(evaluation.model, evaluation.structure, folder.final_weights(digest, seed))
        folder.journal.write_final(
            FinalRecord(
                digest,
                seed,
                policy,
                evaluation.result,
                tested.accuracy if tested else None,
                tested.loss if tested else None,
                clock.seconds,
            )
        )
        attempt.finish()
        left = (clock.seconds - began) / number * (len(missing) - number)
        watcher.headline(_headline(f"final run {number}/{len(missing)} ({name})", evaluation.result, left))
    _tell_failures(folder.journal, runs, watcher)
    known = read_comparison(folder)
    comparison = Comparison(
        dense=known.dense if known else _dense(subject),
        int8=known.int8 if known else _int8(subject),
        baselines={name: policy.digest for name, policy in baselines.items()},
        granularity=space.usable[0],
        finalists=tuple(policy.digest for policy in finalists),
        latency=known.latency if known else None,
        test_examples=len(subject.workload.test[1]),
    )
    if config.needs_latency:
        comparison = replace(comparison, latency=_timed(config, folder, subject, comparison, watcher))
    write_comparison(folder, comparison)
    return comparison


def _tell_failures(
    journal: Journal, runs: Mapping[tuple[str, int], tuple[str, PruningPolicy]], watcher: Watcher
) -> None:
    for final in journal.finals():
        if final.result.state != COMPLETE and (what := runs.get((final.digest, final.seed))):
            path = journal.final_path(final.digest, final.seed)
            watcher.note(
                f"the final run of {what[0]} with seed {final.seed} failed ({final.result.reason}) and is in no mean: "
                f"to repeat it, delete {path} and run the same command"
            )


def _evaluated(
    config: SearchConfig, subject: Subject, policy: PruningPolicy, seed: int, attempt: Attempt, progress: Progress
) -> tuple[Evaluation, Scores | None]:
    """One full-length fine-tune and its scores on test data, unless it has ended this process too often.

    It may last as many times longer than a trial as it has epochs more.
    """
    if reason := attempt.failure:
        return failed(reason), None
    recipe, limit = subject.workload.recipe, config.trial_timeout
    if limit is not None:
        limit *= max(recipe.final_epochs / recipe.trial_epochs, 1)
    give_up = give_up_on(attempt, "a final run", limit)
    with attempt.running(progress) as step:
        evaluation = evaluate_policy(subject, policy, recipe.final_epochs, seed, step, seconds=limit, give_up=give_up)
        if evaluation.model is None:
            return evaluation, None
        try:
            return evaluation, score(evaluation.model, subject.workload.test, subject.workload)
        except BaseException as error:
            pass_signals_on(error)
            return failed(f"error on test data: {told(error)}"), None


def _timed(
    config: SearchConfig, folder: StudyFolder, subject: Subject, comparison: Comparison, watcher: Watcher
) -> TimedNetworks:
    """Time all that are compared in the same rounds, unless that was done in this environment before."""
    scores = score_finals(folder.journal.finals(), config.final_seeds)
    digests = dict.fromkeys([*comparison.finalists, *comparison.baselines.values()])
    kept = {d: folder.final_weights(d, scores[d].best_seed) for d in digests if d in scores}
    kept = {digest: path for digest, path in kept.items() if path.is_file()}
    before, here = comparison.latency, (describe_device(torch.device("cpu")), torch.get_num_threads())
    if before and (before.device, before.threads) == here and before.networks.keys() >= kept.keys():
        return before
    dense = build_model(subject.workload, config.dense_seed)
    networks = {digest: load_model(dense, path)[0] for digest, path in kept.items()}
    with watcher.stage("latency of the finals") as progress:
        return time_finals(subject, networks, progress)


def _headline(run: str, result: TrialResult, left: float) -> str:
    what = f"{result.accuracy:.2%} on validation" if result.state == COMPLETE else f"{result.state}: {result.reason}"
    return f"{run}: {what}" + (f" | about {duration(left)} left" if left else "")


def final_runs_left(
    config: SearchConfig, finalists: Sequence[str], finals: Sequence[FinalRecord], comparison: Comparison | None
) -> int:
    """Full-length fine-tunes that are still to come if these policies (digests) are the finalists.

    While no comparison says which static baselines reach the limit and differ from finalists, it is the most there
    can be.
    """
    if not config.finalists or (comparison and set(finalists) <= {*comparison.finalists}):
        return 0
    runs = Counter(final.digest for final in finals)
    mine = sum(max(config.final_seeds - runs.pop(digest, 0), 0) for digest in finalists)
    if comparison:
        return mine
    return mine + max(len(BASELINES) * config.final_seeds - runs.total(), 0)


def baseline_policies(subject: Subject, space: Space, finalists: Sequence[PruningPolicy]) -> dict[str, PruningPolicy]:
    """Static allocations at the limit; one that removes what a finalist or an earlier one does, is that policy."""
    granularity = space.usable[0]
    evidence = {part: Evidence(unit_evidence(subject.dense, subject.graph, part)) for part in parts_of(granularity)}
    known = {effect(space.network, policy): policy for policy in reversed(finalists)}
    policies = {}
    for name in BASELINES:
        try:
            policy = allocated(space, name, space.size_range[1], granularity, evidence)
        except Unreachable:
            continue
        policies[name] = known.setdefault(effect(space.network, policy), policy)
    return policies


def _dense(subject: Subject) -> Reference:
    workload = subject.workload
    validation, test = (score(subject.dense, s, workload).accuracy for s in (workload.validation, workload.test))
    return Reference(validation, test, 1.0, 1.0)


def _int8(subject: Subject) -> Reference:
    workload = subject.workload
    rounded, size = quantize_int8(subject.dense)
    refresh_statistics_(rounded, workload)
    validation, test = (score(rounded, s, workload).accuracy for s in (workload.validation, workload.test))
    return Reference(validation, test, size / dense_bytes(subject.dense), nonzero_share_int8(subject.dense))


def write_comparison(folder: StudyFolder, comparison: Comparison) -> None:
    """Write down what the study's finals were compared with; `read_comparison` undoes it."""
    data = {"version": COMPARISON_VERSION, **asdict(comparison)}
    if comparison.test_examples is None:
        del data["test_examples"]
    text = json.dumps(data, indent=1)
    write_durably(folder.path / "comparison.json", text.encode())


def read_comparison(folder: StudyFolder) -> Comparison | None:
    """What the study's last finals were compared with; None before them, or if it was written by another version.

    Raises:
        Refused: it is damaged.
    """
    path = folder.path / "comparison.json"
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = parse_object(read_text(path))
        if data.pop("version", None) not in READ_VERSIONS:
            return None
        references = {name: Reference(**data.pop(name)) for name in ("dense", "int8")}
        latency = _read_latency(data.pop("latency", None))
        found = Comparison(**references, finalists=tuple(data.pop("finalists")), latency=latency, **data)
        _check_comparison(found)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise Refused(f"damaged {path}: {error}; delete it to compare again") from None


def _check_comparison(found: Comparison) -> None:
    for reference in (found.dense, found.int8):
        if not all(is_number(share) and 0 <= share <= LARGEST_SHARE for share in vars(reference).values()):
            raise ValueError(f"accuracies and sizes must be shares, got {reference}")
    examples = found.test_examples
    if examples is not None and not (type(examples) is int and examples > 0):
        raise ValueError(f"test_examples must be a whole number from 1 on, got {examples!r}")
    digests = [*found.finalists, *dict(found.baselines).values()]
    if not all(isinstance(word, str) for word in (*digests, *found.baselines, found.granularity)):
        raise ValueError("baselines, finalists and granularity must be text")


def _read_latency(data: Mapping[str, Any] | None) -> TimedNetworks | None:
    if data is None:
        return None
    own = {name: TimedNetwork(**data[name]) for name in ("dense", "copy")}
    networks = {digest: TimedNetwork(**timed) for digest, timed in data["networks"].items()}
    return TimedNetworks(**{**data, **own, "networks": networks})


@dataclass(frozen=True)
class ClosingRow:
    """One line of the closing table; accuracies, sizes and MACs are shares, sd None where there is one run.

    Attributes:
        latency: measured; None where it was not, as int8 weights run no faster here.
        within_noise: whether the latency is not shown to differ from the dense model's; None where it was not measured.
        failed: runs beside the `runs` that the means are of.
    """

    name: str
    runs: int
    validation: float
    validation_sd: float | None
    test: float
    test_sd: float | None
    size_encoded: float
    size_nonzero: float
    macs: float
    latency: TimedNetwork | None = None
    within_noise: bool | None = None
    failed: int = 0


def closing_rows(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int]
) -> list[ClosingRow]:
    """Dense, int8, baselines, finalists; `trial_of` maps a finalist's digest to its trial."""
    timed = comparison.latency
    rows = [_reference_row("dense", comparison.dense), _reference_row("dense int8", comparison.int8)]
    rows[0] = replace(rows[0], latency=timed.dense if timed else None)
    named = {f"{name} ({comparison.granularity})": digest for name, digest in comparison.baselines.items()}
    named |= {f"trial {trial_of[d]}" if d in trial_of else d: d for d in comparison.finalists}
    return rows + [_final_row(name, finals[digest], timed) for name, digest in named.items() if digest in finals]


def _reference_row(name: str, reference: Reference) -> ClosingRow:
    validation, test = reference.validation_accuracy, reference.test_accuracy
    return ClosingRow(name, 1, validation, None, test, None, reference.size_encoded, reference.size_nonzero, 1.0)


def _final_row(name: str, score: FinalScore, timed: TimedNetworks | None) -> ClosingRow:
    accuracies = score.final_accuracy, score.final_sd, score.test_accuracy, score.test_sd
    sizes = score.size_encoded, score.size_nonzero, score.macs
    row = ClosingRow(name, score.n, *accuracies, *sizes, failed=score.failed)
    if timed is None or score.digest not in timed.networks:
        return row
    return replace(row, latency=timed.networks[score.digest], within_noise=timed.within_noise(score.digest))


def verdict(comparison: Comparison, finals: Mapping[str, FinalScore]) -> str | None:
    """One sentence: is the most accurate finalist above the most accurate static baseline on test, or is it noise?

    Most accurate is of highest `final_accuracy`, on validation data.
    """
    found = [finals[d] for d in comparison.finalists if d in finals]
    static = {name: finals[d] for name, d in comparison.baselines.items() if d in finals}
    if not found or not static:
        return None
    top = max(found, key=lambda f: f.final_accuracy)
    name = max(static, key=lambda n: static[n].final_accuracy)
    other = static[name]
    finalist = "The most accurate finalist"
    if top.digest == other.digest:
        return f"{finalist} is the static policy '{name}': the search found nothing better on validation data."
    difference = top.test_accuracy - other.test_accuracy
    points = f"{abs(difference) * 100:.2f} points"
    seeds = "one seed each" if top.test_sd is None or other.test_sd is None else f"{top.n} seeds"
    remarks = "; ".join([seeds, *_size_remark(top, other), *_examples_remark(comparison.test_examples)])
    error = _difference_error(top, other, comparison.test_examples)
    if error is not None and abs(difference) <= NOISE_FACTOR * error:
        return f"{finalist} and '{name}' differ by {points} on test, within noise ({remarks})."
    return f"{finalist} is {points} {'above' if difference > 0 else 'below'} '{name}' on test ({remarks})."


def _difference_error(first: FinalScore, second: FinalScore, examples: int | None) -> float | None:
    """Standard error of a difference of test accuracies: that of the seeds, and that of so many test examples.

    Examples count as if each network had been tested on others, which is the most it can be. None if nothing is known.
    """
    variance, known = 0.0, False
    if first.test_sd is not None and second.test_sd is not None:
        known = True
        variance += fmean([first.test_sd**2, second.test_sd**2]) * 2 / min(first.n, second.n)
    if examples:
        known = True
        variance += sum(p * (1 - p) / examples for p in (first.test_accuracy, second.test_accuracy) if 0 <= p <= 1)
    return math.sqrt(variance) if known else None


def _size_remark(first: FinalScore, second: FinalScore) -> list[str]:
    """Sizes and MACs of both where they differ by more than `ALIKE` of the larger."""
    pairs = ((first.size_encoded, second.size_encoded), (first.macs, second.macs))
    if all(max(pair) - min(pair) <= ALIKE * max(pair) for pair in pairs):
        return []
    one, other = ([f"{share * 100:.1f} %" for share in (f.size_encoded, f.macs)] for f in (first, second))
    return [f"{one[0]} of the size and {one[1]} of the MACs against {' and '.join(other)}"]


def _examples_remark(examples: int | None) -> list[str]:
    if not examples or examples > MANY_EXAMPLES:
        return []
    return [f"one of the {examples} test examples is {100 / examples:.2g} points"]
