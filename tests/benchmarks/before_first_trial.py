"""How long does a study of a large network take until its first trial begins?

    python tests/benchmarks/before_first_trial.py [NETWORK ...] [--share 0.25]

For networks of torchvision with random weights and 1,000 images of noise, 64 pixels wide, everything that `search` does
before its first trial but training the dense model: tracing, fingerprints, the score of the dense model, the scan,
allocations, the first proposals and the stores. It is compared with ten epochs of forward and backward passes over the
1,000 images, of which some batches are timed before the study and as many after it. Both are CPU seconds of this
process, one thread. With `--share`, that part of the scan's points is scored, evenly spread, others are made up, and
the time of the scan is multiplied by as much, also that of what it does once. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from study import hardware
from torch import nn
from torch.nn.functional import cross_entropy

from pruning.analysis.sensitivity_scan import ROUNDING, Point, PointKey, scan_sensitivity
from pruning.channels.graph import ChannelGraph
from search.cli.text_tables import render
from search.config import SearchConfig
from search.networks.names import build_network
from search.progress import ProgressReporter
from search.study.start import run_search
from search.training import profile_cache
from search.workloads import Workload
from search.workloads.choices import AS_BUILT
from spaces.allocation.knobs import knobs_of
from spaces.sensitivity import Profile, ProfilePoint, RoundingPoint

NETWORKS = ("resnet50", "efficientnet_b0", "vit_b_16")
IMAGES, PIXELS, CLASSES, BATCH, EPOCHS = 1000, 64, 10, 25, 10
TIMED = 1
"""Batches trained before the study, and again after it."""
SCAN = "sensitivity scan"


def noise(network: str) -> Workload:
    """The network as it is built, and noise for every split."""
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randn(count, 3, PIXELS, PIXELS, generator=draw)
        return images, torch.randint(CLASSES, (count,), generator=draw)

    build = functools.partial(build_network, f"torchvision:{network}", CLASSES, (3, PIXELS, PIXELS))
    return Workload(
        name=network,
        build_model=build,
        fit=split(IMAGES),
        calibration=split(IMAGES),
        validation=split(200),
        test=split(50),
        weights=AS_BUILT,
    )


resnet50 = functools.partial(noise, "resnet50")
efficientnet_b0 = functools.partial(noise, "efficientnet_b0")
vit_b_16 = functools.partial(noise, "vit_b_16")


class Stages(ProgressReporter):
    """CPU seconds of each stage, how many points it has, the CPU time at which a first trial would begin, and what the
    study notes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.points = 0
        self.ready = 0.0

    def note(self, text: str) -> None:
        if text.startswith("time limit"):  # instead of the first trial
            self.ready = time.process_time()
        print(f"  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[Callable[[int, int], None]]:
        began = time.process_time()

        def follow(done: int, total: int) -> None:
            self.points = total
            if done % 20 == 0:
                self.note(f"{label}: {done}/{total}")

        yield follow
        self.seconds[label] += time.process_time() - began


def scanned_in_part(model: nn.Module, graph: ChannelGraph, *data: Any, share: float, **options: Any) -> Profile:
    """`scan_sensitivity`, told made-up points in place of all but a share."""
    draw = random.Random(0)
    keys: list[PointKey] = [
        (granularity, knob, level)
        for granularity in options["granularities"]
        for knob in knobs_of(graph.network, granularity)
        for level in options["levels"]
    ]
    keys += [(ROUNDING, layer, bits) for bits in options["bits"] for layer in graph.network.layer_names]
    made_up: dict[PointKey, Point] = {}
    for place, key in enumerate(keys):
        scores = 2.0 + key[2] * draw.random(), 0.1, 2.0 + key[2] * draw.random(), 0.1
        if int(place * share) == int((place - 1) * share):
            made_up[key] = RoundingPoint(int(key[2]), *scores) if key[0] == ROUNDING else ProfilePoint(key[2], *scores)
    return scan_sensitivity(model, graph, *data, **options | {"known": made_up})


def trained(model: nn.Module, workload: Workload) -> float:
    """CPU seconds of forward and backward passes over `TIMED` batches."""
    images, targets = workload.fit
    model.train()
    began = time.process_time()
    for first in range(0, TIMED * BATCH, BATCH):
        chosen = slice(first, first + BATCH)
        model.zero_grad()
        cross_entropy(model(images[chosen]), targets[chosen]).backward()
    return time.process_time() - began


def measured(network: str, share: float) -> dict[str, Any]:
    """One row."""
    workload = noise(network)
    model = workload.build_model()
    epochs = trained(model, workload)
    stages = Stages()
    with tempfile.TemporaryDirectory() as root:
        began = time.process_time()
        config = SearchConfig(
            workload=f"{__file__}:{network}",
            root=root,
            study="s",
            timeout=1e-9,
            finalists=0,
            device="cpu",
            threads=1,
            cost="macs",
        )
        run_search(config, stages)
        whole = stages.ready - began
        (profile,) = Path(root).glob("cache/profile-*.json")
        examples = json.loads(profile.read_text())["examples"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    epochs = (epochs + trained(model, workload)) * EPOCHS * IMAGES / (2 * TIMED * BATCH)
    scan = stages.seconds[SCAN]
    before = whole - scan + scan / share
    return {
        "network": network,
        "parameters": sum(p.numel() for p in model.parameters()),
        "points": stages.points,
        "examples": examples,
        "scan": scan / share,
        "rest": whole - scan,
        "epochs": epochs,
        "ratio": before / epochs,
        "peak_gb": peak,
        "share": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--share", type=float, default=1.0, help="of the scan's points that are scored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    profile_cache.scan_sensitivity = functools.partial(scanned_in_part, share=arguments.share)
    rows = [measured(network, arguments.share) for network in arguments.networks]
    columns = ["network", "parameters", "points", "examples", "scan", "the rest", "ten epochs", "ratio", "peak memory"]
    print(render(columns, [
        [row["network"], f"{row['parameters']:,}", str(row["points"]), str(row["examples"]), f"{row['scan']:.0f} s",
         f"{row['rest']:.0f} s", f"{row['epochs']:.0f} s", f"{row['ratio']:.2f}", f"{row['peak_gb']:.1f} GB"]
        for row in rows
    ]))  # fmt: skip
    versions = {name: version(name) for name in ("torch", "torchvision")}
    print(json.dumps({"rows": rows, "hardware": hardware(), **versions}))


if __name__ == "__main__":
    main()
