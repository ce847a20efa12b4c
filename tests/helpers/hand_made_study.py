"""Studies written by hand into a folder, without any training: for those who read studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.config import make_config
from search.records import COMPLETE, FAILED, FinalRecord, TrialRecord, TrialResult
from search.results.comparison import Baseline, Comparison, Reference, write_comparison
from search.store.folder import StudyFolder
from search.store.outline import LayerOutline, NetworkOutline, write_outline, write_profile
from search.store.study_record import new_record
from spaces.cost.footprint import RelativeCost
from spaces.cost.timing import TimedNetwork, TimedNetworks
from spaces.policy import PruningPolicy
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

LAYERS = ("first.weight", "</script><script>alert(1)</script>.weight", "x\"'&\u2028\u202e$y$.weight")
REFERENCES = {
    "dense": Reference(0.95, 0.94, 1.0, 1.0),
    "dense at 8 bits": Reference(0.95, 0.94, 0.27, 1.0),
    "dense at 4 bits": Reference(0.80, 0.79, 0.12, 0.9),
}
OUTLINE = NetworkOutline(
    tuple(LayerOutline(name, "linear", (10 * n + 10, 4), 40 * n) for n, name in enumerate(LAYERS)), 400, 160
)


def study(root: Path, name: str = "hand", **options: Any) -> StudyFolder:
    """A study that was begun, with a dense model of 0.95; nothing else of it is there."""
    folder = StudyFolder(root, name)
    config = make_config(
        **{"workload": "digits", "study": name, "max_size": 0.25, "cost": "macs", "trials": 16, **options}
    )
    identity = {"recipe": {"trial_epochs": 1, "final_epochs": 3}, "dense model": "<b>41dfc7</b>"}
    record = {**new_record(config, identity), "dense_accuracy": 0.95, "chance": 0.15}
    folder.write_record({**record, "environment": {"threads": 1, "device": "<i>CPU</i>"}})
    return folder


def policy(number: int, layers: tuple[str, ...] = LAYERS, **options: Any) -> PruningPolicy:
    """Even numbers remove channels, odd ones mask; bits are 8, 8, 4, 4, 8, ..."""
    word = "fine-grained" if number % 2 else "channel"
    sparsity = {layer: round(0.3 + 0.03 * number + 0.01 * place, 4) for place, layer in enumerate(layers)}
    return PruningPolicy(sparsity, **{"granularity": word, "bits": 4 if number // 2 % 2 else 8, **options})


def trial(number: int, accuracy: float | None, size: float, **changes: Any) -> TrialRecord:
    """A finished trial; without accuracy one that failed. From the sixth on it was predicted, 0.02 too high."""
    own = policy(number)
    if accuracy is None:
        result = TrialResult(FAILED, "error: <img src=x onerror=alert(2)>", cause="error")
    else:
        macs = 1.0 if number % 2 else 0.4
        shares = RelativeCost(encoded=size, nonzero=size * 2, macs=macs, macs_nonzero=0.2 * macs)
        result = TrialResult(COMPLETE, None, accuracy, 1.0, shares, dict(own.sparsity), rate=0.1)
    scores = {} if number < 5 or accuracy is None else {
        "predicted": accuracy + 0.02, "predicted_low": accuracy - 0.01, "predicted_high": accuracy + 0.05,
    }  # fmt: skip
    fields = {
        "number": number, "origin": "scan" if number < 5 else "swap", "params": {}, "policy": own,
        "sampled": dict(own.sparsity), "target": 0.25, "result": result, "started": float(number),
        "finished": number + 0.5, "proposing": 0.1, "scores": scores,
    }  # fmt: skip
    return TrialRecord(**{**fields, **changes})


def trials() -> list[TrialRecord]:
    """Fifteen: the larger the more accurate, those with 4 bits less so, and one that failed."""
    found = [trial(n, 0.6 + 0.02 * n - 0.025 * (n // 2 % 2), 0.05 + 0.012 * n) for n in range(15) if n != 7]
    return [*found, trial(7, None, 0.2)]


def with_everything(root: Path, name: str = "hand", **options: Any) -> StudyFolder:
    """Trials, finals of two of them, a comparison with latency, a profile and the outline of the network."""
    folder = study(root, name, **{"trials": 15, "finalists": 2, **options})
    for record in trials():
        folder.journal.write_trial(record)
    top, second, static = policy(14), policy(12), policy(19)
    for own, tested, macs in ((top, 0.90, 0.4), (second, 0.89, 0.4), (static, 0.85, 1.0)):
        write_finals(folder, own, tested, macs=macs)
    timed = {
        top.digest: TimedNetwork(0.006, 0.02, 0.6, 0.58, 0.62),
        static.digest: TimedNetwork(0.01, 0.02, 1, 0.98, 1.02),
    }
    dense, copy = TimedNetwork(0.01, 0.02, 1.0, 1.0, 1.0), TimedNetwork(0.01, 0.02, 1.0, 0.99, 1.01)
    latency = TimedNetworks("<b>CPU</b>", 1, 1, 30, dense, copy, timed)
    write_comparison(
        folder,
        Comparison(REFERENCES, {"uniform": static.digest}, "fine-grained", (top.digest, second.digest), latency, 400),
    )
    points = {layer: (ProfilePoint(0.5, 1, 0.9, 1, 0.9 - 0.1 * n),) for n, layer in enumerate(LAYERS)}
    rounding = {layer: (RoundingPoint(4, 1, 0.9, 1, 0.9),) for layer in LAYERS}
    write_profile(folder, Profile("m", 60, 0.5, 0.95, {"fine-grained": points}, 1.0, rounding=rounding))
    write_outline(folder, OUTLINE)
    return folder


def write_finals(
    folder: StudyFolder, own: PruningPolicy, tested: float, runs: int = 3, size: float = 0.21, macs: float = 0.4
) -> None:
    """Full-length runs of a policy, each a hundredth better than the one before, on validation data as on test data."""
    for seed in range(runs):
        shares = RelativeCost(encoded=size, nonzero=0.4, macs=macs, macs_nonzero=0.1)
        result = TrialResult(COMPLETE, None, tested + 0.01 * seed, 1.0, shares, dict(own.sparsity))
        run = FinalRecord(own.digest, seed, own, result, tested + 0.01 * seed, 1.0, 20.0 + seed)
        folder.journal.write_final(run)


def with_pairs(root: Path, **options: Any) -> StudyFolder:
    """That of `with_everything`, whose finalists stand beside static rules of their size: trial 14 beside LAMP with as
    many runs, which is 5 points less accurate, trial 12 beside LAMP with one run, 2 points more accurate than the first
    of it; and the uniform rule at the limit.
    """
    folder = with_everything(root, **options)
    top, second = policy(14).digest, policy(12).digest
    first, other, limit = policy(19), policy(20), policy(21)
    write_finals(folder, other, 0.91, runs=1, size=0.17)
    write_finals(folder, limit, 0.86, runs=1, size=0.25)
    matched = {top: Baseline("lamp", first.digest), second: Baseline("lamp", other.digest)}
    at_limit = {"uniform": limit.digest}
    write_comparison(
        folder, Comparison(REFERENCES, at_limit, "channel", (top, second), test_examples=400, matched=matched)
    )
    return folder
