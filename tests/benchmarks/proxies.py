"""How well do cheap scores predict a policy's accuracy after its fine-tune?

    python tests/benchmarks/proxies.py run [--part 0/2]
    python tests/benchmarks/proxies.py show

`run` draws 30 policies in each of six cells (three size bands, two granularities) on small Fashion-MNIST, fine-tunes
each with 2 seeds and once with a quarter of the epochs, and scores it without training. Each policy is one line of
`proxies.csv` beside this file; what is there is not run again, so runs resume and can be split. `show` prints rank
correlations cell by cell.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from small_fashion import TRIAL_EPOCHS, small_fashion

from pruning.calibrate import recalibrate_
from pruning.evidence import unit_evidence
from pruning.prune import prune
from pruning.screen import Screener
from search.dense import dense_model
from search.evaluate import Subject, evaluate_policy
from search.train import score
from spaces.allocation import Evidence, Target, Unreachable, allocate, shifted
from spaces.policy import PruningPolicy
from spaces.space import SEED_SCHEDULE, Space

BANDS = {"25-12 %": (0.12, 0.25), "12-7 %": (0.07, 0.12), "under 7 %": (0.025, 0.07)}
GRANULARITIES = ("fine-grained", "channel")
POLICIES, SEEDS, RUNG = 30, (1, 2), 0.25
STATIC = ("lamp", "global", "erk", "uniform", "last-layers")
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "band", "granularity", "number", "kind", "size", "macs", "accuracy_1", "accuracy_2", "loss_1", "loss_2",
    "rung_accuracy", "rung_loss", "kl_500", "kl_2000", "zero_shot_accuracy", "seconds", "seconds_kl_500", "sparsity",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One policy to measure: `kind` says how it was drawn."""

    band: str
    granularity: str
    number: int
    kind: str
    policy: PruningPolicy


def candidates(space: Space, evidence: dict[str, Evidence]) -> Iterator[Candidate]:
    """Cell by cell in turn: each third of a cell is static, jittered around static, or free."""
    for number in range(POLICIES):
        for band, (low, high) in BANDS.items():
            for granularity in GRANULARITIES:
                random = np.random.default_rng([number, list(BANDS).index(band), GRANULARITIES.index(granularity)])
                size = low * (high / low) ** random.random()
                kind = ("static", "jittered", "free")[number % 3]
                sparsity = _drawn(kind, number // 3, space.target(size, granularity), evidence[granularity], random)
                proposal = space.propose(size, granularity, sparsity, SEED_SCHEDULE)
                yield Candidate(band, granularity, number, kind, proposal.policy)


def _drawn(kind: str, turn: int, target: Target, evidence: Evidence, random: np.random.Generator) -> dict[str, float]:
    if kind == "free":
        return {layer.name: float(1 / (1 + np.exp(-random.normal(0, 1.5)))) for layer in target.layers}
    for name in (STATIC[turn % len(STATIC)], "uniform"):
        try:
            sparsity = allocate(name, target, evidence)
            break
        except Unreachable:
            continue
    spread = 0.7 if kind == "jittered" else 0.0
    return {name: shifted({name: s}, float(random.normal(0, spread)))[name] for name, s in sparsity.items()}


def run(part: int, parts: int, root: Path) -> None:
    workload = small_fashion()
    dense = dense_model(workload, 0, root / "cache")
    subject = Subject.of(workload, dense.model)
    space = Space(subject.network, max(high for _, high in BANDS.values()))
    evidence = {g: Evidence(unit_evidence(subject.dense, subject.graph, g)) for g in GRANULARITIES}
    inputs = workload.calibration[0]
    screener = Screener(subject.dense, subject.graph, inputs[:500])
    reference = torch.cat([subject.dense(batch) for batch in inputs.split(500)]).detach()
    for place, candidate in enumerate(candidates(space, evidence)):
        if place % parts == part and _key(candidate) not in _done():
            _append(_measured(candidate, subject, screener, reference))


def _measured(candidate: Candidate, subject: Subject, screener: Screener, reference: torch.Tensor) -> dict[str, object]:
    began = time.perf_counter()
    kl = screener.divergence(candidate.policy)
    seconds_kl = time.perf_counter() - began
    workload = subject.workload
    pruned = prune(subject.dense, candidate.policy, graph=subject.graph).eval()
    recalibrate_(pruned, workload.calibration[0].split(500))
    with torch.inference_mode():
        logs = torch.log_softmax(torch.cat([pruned(b) for b in workload.calibration[0].split(500)]), 1)
    kl_2000 = torch.nn.functional.kl_div(logs, torch.log_softmax(reference, 1), reduction="batchmean", log_target=True)
    began = time.perf_counter()
    runs = [evaluate_policy(subject, candidate.policy, TRIAL_EPOCHS, seed).result for seed in SEEDS]
    seconds = (time.perf_counter() - began) / len(SEEDS)
    rung = evaluate_policy(subject, candidate.policy, TRIAL_EPOCHS * RUNG, SEEDS[0]).result
    return {
        "band": candidate.band,
        "granularity": candidate.granularity,
        "number": candidate.number,
        "kind": candidate.kind,
        "size": f"{runs[0].shares.encoded:.5f}",
        "macs": f"{runs[0].shares.macs:.5f}",
        **{f"accuracy_{seed}": run.accuracy for seed, run in zip(SEEDS, runs, strict=True)},
        **{f"loss_{seed}": f"{run.loss:.5f}" for seed, run in zip(SEEDS, runs, strict=True)},
        "rung_accuracy": rung.accuracy,
        "rung_loss": f"{rung.loss:.5f}" if rung.loss is not None else "",
        "kl_500": f"{kl:.5f}",
        "kl_2000": f"{float(kl_2000):.5f}",
        "zero_shot_accuracy": f"{score(pruned, workload.calibration, workload).accuracy:.4f}",
        "seconds": f"{seconds:.1f}",
        "seconds_kl_500": f"{seconds_kl:.2f}",
        "sparsity": json.dumps({name: round(s, 5) for name, s in candidate.policy.sparsity.items()}),
    }


def _key(candidate: Candidate) -> tuple[str, str, int]:
    return candidate.band, candidate.granularity, candidate.number


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader(TABLE.open())) if TABLE.is_file() else []


def _done() -> set[tuple[str, str, int]]:
    return {(row["band"], row["granularity"], int(row["number"])) for row in _rows()}


def _append(row: dict[str, object]) -> None:
    new = not TABLE.is_file()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--root", type=Path, default=Path("mlruns"))
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if options.command == "run":
        run(part, parts, options.root)


if __name__ == "__main__":
    main()
