"""What a CUDA card does with the project's networks, in ten minutes at most; one line where there is no card.

    python tests/benchmarks/gpu_check.py                # or with --minutes 5, --data DIR of Fashion-MNIST's idx files
    python tests/benchmarks/gpu_check.py --dry-run      # the same parts on the CPU, at tiny sizes: no figure counts

Laws (groups, masks, scan and trial beside the CPU's; a trial that repeats itself), memory (trial 12 beside trial 2; the
trial after one on a filled card), speed (masked steps beside dense ones, bf16 beside fp32, latency with a control, 2:4
in linear layers) and a study of Fashion-MNIST at full width. A part that fails says why, and the next goes on. Prints a
table, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from pruning.analysis.sensitivity_scan import scan_sensitivity
from pruning.importance.scores import ImportanceScores
from pruning.latency import describe_device, time_networks
from pruning.policy_masks import policy_masks
from search.placement import Placement
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.fingerprint import weights_fingerprint
from search.training.train import in_fast_layout, train_dense
from search.workloads import get_workload
from search.workloads.base import placed
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

MINUTES = 10.0
GRANULARITIES = ("fine-grained", "vector", "kernel", "2:4", "channel")
LEAST_SPEED = 0.97
"""Masked steps over dense steps, at least."""
STUDY_SHARE = 0.5
"""Of the minutes, at most so many are kept for the study at the end."""
SPARSE_SIZES = ((1024, 1024), (4096, 4096), (4096, 11008))
"""Outputs and inputs of linear layers that are timed at 2:4."""


@dataclass
class Check:
    """One run: where, how large, and what was found.

    Attributes:
        found: part -> its figures, or `failed` with the reason.
    """

    device: torch.device
    dry: bool
    until: float
    data: str | None = None
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    dense: nn.Module | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.placement = Placement(self.device)
        self.width = 1 / 8 if self.dry else 1.0
        self.workload = get_workload("digits", width=self.width)
        if self.dry:
            fit = tuple(part[:256] for part in self.workload.fit)
            self.workload = replace(self.workload, fit=fit, recipe=replace(self.workload.recipe, dense_epochs=2))

    def prepared(self, placement: Placement | None = None) -> PreparedModel:
        """The dense network of digits, trained once, on `placement`."""
        if self.dense is None:
            self.dense = train_dense(placed(self.workload, self.placement), 0).model.cpu()
        there = placed(self.workload, placement or self.placement)
        return PreparedModel.of(there, copy.deepcopy(self.dense).to(there.placement.device))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def fine(prepared: PreparedModel, share: float = 0.8, schedule: Schedule | None = None) -> PruningPolicy:
    ramp = schedule or Schedule("polynomial", 3)
    return PruningPolicy(dict.fromkeys(prepared.network.layer_names, share), "fine-grained", schedule=ramp)


def channels(prepared: PreparedModel, share: float = 0.5) -> PruningPolicy:
    names = [layer.name for layer in prepared.network.prunable if not layer.obstacle]
    return PruningPolicy(dict.fromkeys(names, share), "channel", schedule=Schedule("one-shot"))


def laws(check: Check) -> dict[str, Any]:
    """Groups, masks and a scan as on the CPU; by how much they differ, for sums may round otherwise."""
    here, away = check.prepared(Placement()), check.prepared()
    found: dict[str, Any] = {"same groups": here.network == away.network}
    for word in GRANULARITIES:
        names = [layer.name for layer in here.network.prunable if word != "channel" or not layer.obstacle]
        policy = PruningPolicy(dict.fromkeys(names, 0.5), word)
        one, other = (policy_masks(prepared.dense, policy, graph=prepared.graph)[0] for prepared in (here, away))
        apart = sum(int((mask != other[name].cpu()).sum()) for name, mask in one.items())
        found[f"{word}: share of mask elements apart"] = apart / sum(mask.numel() for mask in one.values())
    scores = [ImportanceScores(p.dense, "magnitude-l2", p.graph).group(0) for p in (here, away)]
    found["largest difference of channel scores"] = float(abs(scores[0] - scores[1]).max())
    one, other = (scanned(prepared) for prepared in (here, away))
    found["scan: largest relative difference of a loss"] = max(abs(other[n] / loss - 1) for n, loss in one.items())
    return found


def scanned(prepared: PreparedModel) -> dict[tuple[str, int], float]:
    """Layer and number of the level -> loss with the layer pruned to it alone."""
    workload = prepared.workload
    profile = scan_sensitivity(
        prepared.dense, prepared.graph, workload.calibration, workload.loss, workload.metric, ("fine-grained",),
        levels=(0.5, 0.9),
    )  # fmt: skip
    rows = profile.points["fine-grained"].items()
    return {(name, number): point.loss for name, row in rows for number, point in enumerate(row)}


def repeats(check: Check) -> dict[str, Any]:
    """Whether a trial repeats itself bit for bit, as it is and with `--deterministic`; accuracy beside the CPU's."""
    cpu = evaluate_policy(prepared := check.prepared(Placement()), fine(prepared), 1, 0).result
    found: dict[str, Any] = {"accuracy on the CPU": cpu.accuracy}
    for word, deterministic in (("as it is", False), ("deterministic", True)):
        placement = Placement(check.device, deterministic=deterministic)
        with placement.running():
            prepared = check.prepared(placement)
            for name, policy in (("fine-grained", fine(prepared)), ("channel", channels(prepared))):
                ran = [evaluate_policy(prepared, policy, 1, 0) for _ in range(2)]
                prints = {weights_fingerprint(one.network[0]) for one in ran}
                found[f"{name}, {word}: repeats bit for bit"] = len(prints) == 1
                found[f"{name}, {word}: accuracy"] = ran[0].result.accuracy
    return found


def memory(check: Check) -> dict[str, Any]:
    """Peaks of twelve trials in turn."""
    prepared, peaks = check.prepared(), []
    for number in range(12):
        policy = channels(prepared) if number % 2 else fine(prepared)
        if check.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(check.device)
        result = evaluate_policy(prepared, policy, 0.25, number).result
        assert result.reason is None, result.reason
        peaks.append(torch.cuda.max_memory_allocated(check.device) if check.device.type == "cuda" else 0)
    return {"peak bytes of trial 2": peaks[1], "of trial 12": peaks[11], "ratio": peaks[11] / max(peaks[1], 1)}


@contextlib.contextmanager
def filled(device: torch.device) -> Iterator[None]:
    """The card is full within it: blocks are taken, ever smaller, until not even a mebibyte is left."""
    gc.collect()
    torch.cuda.empty_cache()
    taken: list[torch.Tensor] = []
    size = int(torch.cuda.mem_get_info(device)[0])
    while size >= 2**20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.empty_cache()


def full_card(check: Check) -> dict[str, Any]:
    """A trial on a card without room is failed for lack of memory, and the next one works."""
    prepared = check.prepared()
    policy = fine(prepared)
    if check.device.type != "cuda":
        return {"skipped": "only a card is filled"}
    with filled(check.device):
        lacking = evaluate_policy(prepared, policy, 0.25, 0).result
    after = evaluate_policy(prepared, policy, 0.25, 0).result
    return {"on a full card": lacking.cause, "after it": after.state, "its accuracy": after.accuracy}


def masked_steps(check: Check) -> dict[str, Any]:
    """Training steps a second with 80 % of the weights masked from the first step on, beside none masked.

    Images are digits at four times their size, 32 x 32, so that a step is more than the launching of its kernels.
    """
    small = check.prepared()
    inputs, labels = small.workload.fit
    size = 8 if check.dry else 32
    fit = nn.functional.interpolate(inputs, size=(size, size)), labels
    prepared = replace(small, workload=replace(small.workload, fit=fit))
    steps = {"masked": fine(prepared, 0.8, Schedule("one-shot")), "dense": fine(prepared, 0.0, Schedule("one-shot"))}
    epochs, rounds = (0.5, 1) if check.dry else (10, 5)
    seconds: dict[str, list[float]] = {word: [] for word in steps}
    for number in range(rounds + 1):  # the first warms up
        for word, policy in steps.items():
            result = evaluate_policy(prepared, policy, epochs, number).result
            assert result.reason is None, result.reason
            if number or check.dry:
                seconds[word].append(result.seconds["training"])
    speed = median(d / m for d, m in zip(seconds["dense"], seconds["masked"], strict=True))
    return {"masked over dense steps": speed, f"at least {LEAST_SPEED}": speed >= LEAST_SPEED}


def precisions(check: Check) -> dict[str, Any]:
    """Images a second that resnet50 trains on at 224 x 224, in each precision."""
    from torchvision.models import resnet18, resnet50

    torch.manual_seed(0)
    batch, size, steps, warm = (2, 32, 2, 1) if check.dry else (128, 224, 20, 5)
    build = resnet18 if check.dry else resnet50
    images = torch.randn(batch, 3, size, size, device=check.device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=check.device) % 10
    found = {}
    for precision in ("fp32", "bf16", "fp16"):
        placement = Placement(check.device, precision)
        model = build(num_classes=10).to(check.device).to(memory_format=torch.channels_last)
        optimizer, scaler = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), placement.scaler()
        for step in range(warm + steps):
            if step == warm:
                check.wait()
                began = time.perf_counter()
            with placement.autocast():
                outputs = model(images)
            loss = nn.functional.cross_entropy(placement.widened(outputs), labels)
            optimizer.zero_grad()
            (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        check.wait()
        found[f"{precision}: images/s"] = batch * steps / (time.perf_counter() - began)
        found[f"{precision}: last loss"] = float(loss.detach())
    found["bf16 over fp32"] = found["bf16: images/s"] / found["fp32: images/s"]
    return found


def latency(check: Check) -> dict[str, Any]:
    """Half the channels beside the dense network and a copy of it, at two batches."""
    prepared, rounds = check.prepared(), 3 if check.dry else 20
    tuned = evaluate_policy(prepared, channels(prepared), 0.25, 0)
    half = in_fast_layout(tuned.network[0], prepared.workload.example_input)
    found: dict[str, Any] = {}
    for batch in (1, 8 if check.dry else 256):
        timed = time_networks(prepared.dense, {"half": half}, prepared.workload.example_input, batch, rounds)
        found[f"batch {batch}: dense seconds"] = timed.dense.seconds
        for word, one in (("copy", timed.copy), ("half the channels", timed.networks["half"])):
            found[f"batch {batch}: {word} over dense"] = [one.share, one.low, one.high]
    return found


def two_of_four(check: Check) -> dict[str, Any]:
    """Linear layers in half precision with PyTorch's 2:4 kernels, beside dense ones."""
    from torch.sparse import to_sparse_semi_structured

    found: dict[str, Any] = {}
    for outputs, inputs in SPARSE_SIZES[: 1 if check.dry else None]:
        weight = torch.randn(outputs, inputs, device=check.device, dtype=torch.float16)
        weight *= torch.tensor([0, 0, 1, 1], device=check.device, dtype=torch.float16).tile(outputs, inputs // 4)
        for rows in (64, 2048):
            batch = torch.randn(rows, inputs, device=check.device, dtype=torch.float16)
            forms = (weight, to_sparse_semi_structured(weight))
            seconds = [best_of(check, partial(nn.functional.linear, batch, form)) for form in forms]
            found[f"{outputs} x {inputs}, {rows} rows: dense over 2:4 seconds"] = seconds[0] / seconds[1]
    return found


def best_of(check: Check, task: Callable[[], object], calls: int = 50, rounds: int = 7) -> float:
    """Seconds of a call in the fastest round."""
    times = []
    for _ in range(rounds):
        task()
        check.wait()
        began = time.perf_counter()
        for _ in range(calls):
            task()
        check.wait()
        times.append((time.perf_counter() - began) / calls)
    return min(times)


def study(check: Check) -> dict[str, Any]:
    """24 trials on Fashion-MNIST at full width, as far as the time goes; the front by size and accuracy."""
    from search import SearchConfig, run_search

    task = ("digits", 2) if check.dry else ("fashion-mnist", 24)
    with tempfile.TemporaryDirectory() as root:
        config = SearchConfig(
            workload=task[0], width=check.width, trials=task[1], finalists=0, cost="macs",
            data=None if check.dry else check.data,
            device=str(check.device), root=root, timeout=max(check.until - time.perf_counter() - 30, 20),
        )  # fmt: skip
        result = run_search(config)
    rows = [(row.size, row.accuracy) for row in result.state.front]
    return {
        "dense accuracy": result.dense_accuracy,
        "trials": dict(result.counts),
        "front, size and accuracy": rows,
        "seconds": {phase: round(seconds, 1) for phase, seconds in result.seconds.items()},
    }


PARTS = (laws, repeats, memory, full_card, masked_steps, precisions, latency, two_of_four, study)


def run(check: Check) -> None:
    """Every part that there is time for; what fails is told in its place."""
    began = time.perf_counter()
    share = 1.0 if check.dry else 1 - STUDY_SHARE
    for part in PARTS:
        name = part.__name__.replace("_", " ")
        started = time.perf_counter()
        if started - began > share * (check.until - began) and part is not study:
            check.found[name] = {"skipped": "no time left"}
            continue
        try:
            found = part(check)
        except Exception as error:  # the card is there for minutes: each part is worth having
            found = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        check.found[name] = {**found, "part's seconds": round(time.perf_counter() - started, 1)}
        print(rows_of(name, check.found[name]), flush=True)
        gc.collect()
        if check.device.type == "cuda":
            torch.cuda.empty_cache()


def rows_of(part: str, found: dict[str, Any]) -> str:
    """A part's rows of the table."""
    return "\n".join(f"{part:<14} | {what:<48} | {shown(value)}" for what, value in found.items())


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "[" + ", ".join(map(shown, value)) + "]" if isinstance(value, list | tuple) else str(value)


def main(words: list[str] | None = None) -> int:
    """Run all parts; 0 also where there is no card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most so many (%(default)g)")
    parser.add_argument("--data", metavar="DIR", help="Fashion-MNIST's idx files, for the study")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    options = parser.parse_args(words)
    if not (options.dry_run or torch.cuda.is_available()):
        print(
            f"gpu_check: skipped, PyTorch {torch.__version__} sees no CUDA device here; --dry-run tries it on the CPU"
        )
        return 0
    device = torch.device("cpu" if options.dry_run else "cuda:0")
    check = Check(device, options.dry_run, time.perf_counter() + 60 * options.minutes, options.data)
    print(f"{describe_device(device)}, PyTorch {torch.__version__}{' (dry run)' * options.dry_run}", flush=True)
    run(check)
    versions = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }  # fmt: skip
    summary = {"card": describe_device(device), "dry_run": options.dry_run, "versions": versions, "parts": check.found}
    print(json.dumps(summary, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
