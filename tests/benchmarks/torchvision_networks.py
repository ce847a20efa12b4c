"""Can channels be removed from the networks people use, how many, and how long does it take?

    python tests/benchmarks/torchvision_networks.py run [NAME ...]
    python tests/benchmarks/torchvision_networks.py show

torchvision classification networks with random weights and random BatchNorm statistics, scales and shifts. Every second
layer is asked for 25 % of its channels, the others for 40 %, all in one plan; the smaller network's outputs on fresh
inputs are compared with those of the network whose removed channels are zeroed. Every network is one line of
`torchvision_networks.csv` beside this file; what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from raw_rows import append_rows, read_rows
from study import hardware
from torch import Tensor, nn

from pruning.channel_selection import plan_removal
from pruning.channels.removal import mask_removed, shrink
from pruning.channels.tracing import trace_channels
from search.cli.text_tables import render

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "network", "pixels", "layers", "groups", "asked", "whole", "reason", "parameters", "parameters_left", "difference",
    "trace_seconds", "plan_seconds", "shrink_seconds",
)  # fmt: skip
SHARES = 0.25, 0.4
"""Asked of layers at even and at odd places, counted from 0."""
PIXELS = {"alexnet": 96, "inception_v3": 299, "vit_b_16": 224}
"""Sides of the square inputs of networks that refuse `SMALL` ones."""
SMALL, BATCH, SEED = 64, 2, 0
NETWORKS = (
    "alexnet", "squeezenet1_1", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5",
    "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "densenet121", "googlenet", "resnet50", "resnext50_32x4d",
    "convnext_tiny", "efficientnet_v2_s", "inception_v3", "swin_t", "wide_resnet50_2", "vit_b_16", "vgg11_bn",
)  # fmt: skip


def build(name: str) -> nn.Module:
    """The network with random weights; norms, layer scales and zeros that could hide a wrong removal do not stay."""
    torch.manual_seed(SEED)
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale") or not parameter.any():
            nn.init.uniform_(parameter, 0.1, 0.5)
    return model.eval()


def measure(name: str) -> dict[str, Any]:
    """One line of the table."""
    pixels = PIXELS.get(name, SMALL)
    model, example, fresh = build(name), *torch.randn(2, BATCH, 3, pixels, pixels)
    began = time.perf_counter()
    graph = trace_channels(model, example)
    traced = time.perf_counter()
    network = graph.network
    request = {layer: SHARES[place % 2] for place, layer in enumerate(network.layer_names)}
    plan = plan_removal(model, request, example, graph=graph)
    planned = time.perf_counter()
    small = shrink(model, plan)
    shrunk = time.perf_counter()
    reasons = Counter(_operation(reason) for reason in plan.skipped.values())
    return {
        "network": name, "pixels": pixels, "layers": len(network.layers), "groups": len(network.groups),
        "asked": len(request), "whole": len(plan.skipped), "reason": reasons.most_common(1)[0][0],
        "parameters": _parameters(model), "parameters_left": _parameters(small),
        "difference": f"{_difference(mask_removed(model, plan), small, fresh):.1e}",
        "trace_seconds": f"{traced - began:.1f}", "plan_seconds": f"{planned - traced:.1f}",
        "shrink_seconds": f"{shrunk - planned:.1f}",
    }  # fmt: skip


def _operation(reason: str) -> str:
    """A reason without the name, the shape and the error of the one layer it speaks of."""
    return re.sub(r" '[^']*'| from \(.*\) to \(.*\)|: \w+Error: .*", "", reason)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def _difference(masked: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs over the largest |output|."""
    wanted, got = masked(x), copy.deepcopy(small)(x)
    return float((wanted - got).abs().max() / wanted.abs().max())


def run(names: Sequence[str]) -> None:
    """Measure the networks that have no line yet."""
    done = {row["network"] for row in read_rows(TABLE)}
    for name in names:
        if name not in done:
            append_rows(TABLE, COLUMNS, [measure(name)])


def show() -> None:
    """The table, and one JSON line."""
    rows, seconds = read_rows(TABLE), ("trace_seconds", "plan_seconds", "shrink_seconds")
    counts = "network", "pixels", "groups", "asked", "whole"
    body = [
        [
            *(row[name] for name in counts),
            *(f"{int(row[name]) / 1e6:.2f}" for name in ("parameters", "parameters_left")),
            *(row[name] for name in ("difference", *seconds)),
        ]
        for row in rows
    ]
    columns = ["parameters, M", "left, M", "difference", "trace, s", "plan, s", "shrink, s"]
    print("layers asked for channels, layers that stay whole, largest difference of outputs over the largest output\n")
    print(render([*counts, *columns], body))
    reasons = dict.fromkeys(row["reason"] for row in rows)
    names = {reason: ", ".join(row["network"] for row in rows if row["reason"] == reason) for reason in reasons}
    print("\nwhy layers stay whole, most often\n")
    print(render(["reason", "networks"], names.items()))
    versions = {package: version(package) for package in ("torch", "torchvision")}
    summary = {
        "n": len(rows), "largest_difference": max((float(row["difference"]) for row in rows), default=None),
        "asked": sum(int(row["asked"]) for row in rows), "whole": sum(int(row["whole"]) for row in rows),
    }  # fmt: skip
    print(json.dumps({"benchmark": "torchvision_networks", "hardware": hardware(), **versions, **summary}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "run":
        run(options.networks)
    show()


if __name__ == "__main__":
    main()
