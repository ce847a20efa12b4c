"""The honest end of a study: finalists and static baselines, fine-tuned at full length and tested once each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from pruning.codec import dense_bytes
from pruning.evidence import unit_evidence
from pruning.quantize import nonzero_share_int8, quantize_int8
from search.checkpoints import save_model
from search.clock import StudyClock
from search.config import SearchConfig
from search.console import Watcher
from search.errors import Refused
from search.evaluate import Subject, evaluate_policy
from search.folder import StudyFolder
from search.journal import write_durably
from search.records import FinalRecord
from search.results import FinalScore
from search.train import score
from spaces.allocation import Evidence, Unreachable
from spaces.policy import PruningPolicy, parts_of
from spaces.space import Space

COMPARISON_VERSION = 1
BASELINES = ("uniform", "global", "lamp")
NOISE_FACTOR = 2.0
"""A difference of means below this many standard errors is called noise."""


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
        baselines: static allocator -> policy digest, each landed on the limit in `granularity`; allocators
            that cannot reach the limit are absent.
        granularity: of the baselines.
        finalists: policy digests, most accurate first.
    """

    dense: Reference
    int8: Reference
    baselines: Mapping[str, str]
    granularity: str
    finalists: tuple[str, ...]


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
    baselines = _baseline_policies(subject, space)
    done = {(final.digest, final.seed) for final in folder.journal.finals()}
    named = {f"finalist {n}": policy for n, policy in enumerate(finalists, 1)} | baselines
    seeds = [config.seed + 1 + n for n in range(config.final_seeds)]
    runs = {(policy.digest, seed): (name, policy) for name, policy in named.items() for seed in seeds}
    missing = {run: what for run, what in runs.items() if run not in done}
    for number, ((digest, seed), (name, policy)) in enumerate(missing.items(), 1):
        with watcher.stage(f"final run {number}/{len(missing)} ({name}, seed {seed})") as progress:
            evaluation = evaluate_policy(subject, policy, subject.workload.recipe.final_epochs, seed, progress)
        tested = None
        if evaluation.model is not None:
            tested = score(evaluation.model, subject.workload.test, subject.workload)
            if digest in {policy.digest for policy in finalists}:
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
    known = read_comparison(folder)
    comparison = Comparison(
        dense=known.dense if known else _dense(subject),
        int8=known.int8 if known else _int8(subject),
        baselines={name: policy.digest for name, policy in baselines.items()},
        granularity=space.usable[0],
        finalists=tuple(policy.digest for policy in finalists),
    )
    _write_comparison(folder, comparison)
    return comparison


def _baseline_policies(subject: Subject, space: Space) -> dict[str, PruningPolicy]:
    granularity = space.usable[0]
    evidence = {part: Evidence(unit_evidence(subject.dense, subject.graph, part)) for part in parts_of(granularity)}
    policies = {}
    for name in BASELINES:
        try:
            policies[name] = space.allocated(name, space.max_size, granularity, evidence)
        except Unreachable:
            continue
    return policies


def _dense(subject: Subject) -> Reference:
    workload = subject.workload
    validation, test = (score(subject.dense, s, workload).accuracy for s in (workload.validation, workload.test))
    return Reference(validation, test, 1.0, 1.0)


def _int8(subject: Subject) -> Reference:
    workload = subject.workload
    rounded, size = quantize_int8(subject.dense)
    validation, test = (score(rounded, s, workload).accuracy for s in (workload.validation, workload.test))
    return Reference(validation, test, size / dense_bytes(subject.dense), nonzero_share_int8(subject.dense))


def _write_comparison(folder: StudyFolder, comparison: Comparison) -> None:
    text = json.dumps({"version": COMPARISON_VERSION, **asdict(comparison)}, indent=1)
    write_durably(folder.path / "comparison.json", text.encode())


def read_comparison(folder: StudyFolder) -> Comparison | None:
    """What the study's last finals were compared with; None before them, or if it was written by another version.

    Raises:
        Refused: it is damaged.
    """
    path = folder.path / "comparison.json"
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = dict(json.loads(path.read_text()))
        if data.pop("version", None) != COMPARISON_VERSION:
            return None
        references = {name: Reference(**data.pop(name)) for name in ("dense", "int8")}
        return Comparison(**references, finalists=tuple(data.pop("finalists")), **data)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"damaged {path}: {error}; delete it to compare again") from None


@dataclass(frozen=True)
class ClosingRow:
    """One line of the closing table; accuracies are shares, sd None where there is one run."""

    name: str
    runs: int
    validation: float
    validation_sd: float | None
    test: float
    test_sd: float | None
    size_encoded: float
    size_nonzero: float


def closing_rows(
    comparison: Comparison, finals: Mapping[str, FinalScore], trial_of: Mapping[str, int]
) -> list[ClosingRow]:
    """Dense, int8, baselines, finalists; `trial_of` maps a finalist's digest to its trial."""
    rows = [
        ClosingRow(name, 1, ref.validation_accuracy, None, ref.test_accuracy, None, ref.size_encoded, ref.size_nonzero)
        for name, ref in (("dense", comparison.dense), ("dense int8", comparison.int8))
    ]
    named = {f"{name} ({comparison.granularity})": digest for name, digest in comparison.baselines.items()}
    named |= {f"trial {trial_of[d]}" if d in trial_of else d: d for d in comparison.finalists}
    for name, digest in named.items():
        if digest in finals:
            f = finals[digest]
            rows.append(
                ClosingRow(
                    name, f.n, f.final_accuracy, f.final_sd, f.test_accuracy, f.test_sd, f.size_encoded, f.size_nonzero
                )
            )
    return rows


def verdict(comparison: Comparison, finals: Mapping[str, FinalScore]) -> str | None:
    """One sentence: is the best finalist's test accuracy above the best static baseline's, or is it noise?"""
    found = [finals[d] for d in comparison.finalists if d in finals]
    static = {name: finals[d] for name, d in comparison.baselines.items() if d in finals}
    if not found or not static:
        return None
    best = max(found, key=lambda f: f.final_accuracy)
    name = max(static, key=lambda n: static[n].final_accuracy)
    difference = best.test_accuracy - static[name].test_accuracy
    points = f"{abs(difference) * 100:.2f} points"
    if best.digest == static[name].digest:
        return f"The best finalist is the static policy '{name}': the search found nothing better on validation data."
    if best.test_sd is None or static[name].test_sd is None:
        return (
            f"The best finalist is {points} {'above' if difference >= 0 else 'below'} '{name}' on test, one seed each."
        )
    error = math.sqrt(fmean([best.test_sd**2, static[name].test_sd ** 2]) * 2 / min(best.n, static[name].n))
    if abs(difference) <= NOISE_FACTOR * error:
        return f"The best finalist and '{name}' differ by {points} on test, within noise ({best.n} seeds)."
    return f"The best finalist is {points} {'above' if difference > 0 else 'below'} '{name}' on test ({best.n} seeds)."
