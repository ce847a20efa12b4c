"""One step size a layer against bits a channel: the loss of rounded networks at equal bytes.

    python tests/benchmarks/step_sizes.py --workloads digits,residual,depthwise --kept 1,0.2,0.07

Each network is trained (or taken from the cache), pruned by LAMP to so many weights kept and fine-tuned for a trial's
epochs. Its weights are then rounded in two ways, statistics recalibrated, and nothing is trained:

- `bits a channel`: so many bits, and the scale of least mean square error for each output channel, as the file has it;
- `step a layer`: multiples of one step for all channels of a layer, the step a share of the deviation of its weights,
  the same share everywhere, and no limit on the multiples.

Bytes are those of the coded values and scales; a step a layer takes two. The rise of the loss on validation data is
interpolated, in the logarithm of the bytes, at the bytes that so many bits a channel take. Prints a table and one JSON
line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from bytes import networks, workload_named
from study import hardware
from torch import nn

from pruning.copying import copy_model
from pruning.file.coding import SCALES, CodedWriter
from pruning.file.rounding import Rounded
from pruning.file.stored_form import round_weights_
from pruning.modules import prunable_weights
from search.cli.text_tables import render
from search.training.refresh import refresh_statistics_
from search.training.scoring import score
from search.workloads import Workload

BITS = (6, 5, 4, 3)
SHARES = np.geomspace(0.03, 2, 13)
"""Steps, in deviations of a layer's weights that are not zero."""
COLUMNS = ("network", "kept", "bits", "bytes", "bits a channel", "step a layer")


def by_channel(model: nn.Module, bits: int) -> int:
    """Round in place; the bytes."""
    rounded = round_weights_(model, bits)
    return coded_bytes({name: one.integers.numpy() for name, one in rounded.items()}, bits, rounded)


@torch.no_grad()
def by_layer(model: nn.Module, share: float) -> int:
    """Round in place; the bytes."""
    values = {}
    for name, weight in prunable_weights(model).items():
        step = share * float(weight[weight != 0].square().mean().sqrt())
        integers = (weight / step).round()
        weight.copy_(integers * step)
        values[name] = integers.to(torch.int16).numpy()
    most = max(int(np.abs(one).max()) for one in values.values())
    return coded_bytes(values, most.bit_length() + 1) + 2 * len(values)


def coded_bytes(values: Mapping[str, np.ndarray], bits: int, rounded: Mapping[str, Rounded] | None = None) -> int:
    """Of whole numbers through the file's coder, and of their scales if there are any."""
    writer = CodedWriter()
    for name, own in values.items():
        writer.integers(own, bits)
        if rounded:
            one = rounded[name]
            kept = (own != 0).any(axis=tuple(d for d in range(own.ndim) if d != one.dim))
            writer.floats(one.scales.view(torch.int16).numpy(), "BF16", SCALES, kept)
    return len(writer.coded()[1]) + len(writer.plain.bytes)


def measured(workload: Workload, name: str, kept: list[float], seed: int, cache: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for share, model in networks(workload, kept, seed, cache):
        before = score(model, workload.validation, workload).loss

        def rise(copy: nn.Module, before: float = before) -> float:
            refresh_statistics_(copy, workload)
            return score(copy, workload.validation, workload).loss - before

        curve = []
        for step in SHARES:
            copy = copy_model(model)
            size = by_layer(copy, float(step))
            curve.append((size, rise(copy)))
        sizes, rises = np.array(sorted(curve)).T
        for bits in BITS:
            copy = copy_model(model)
            size = by_channel(copy, bits)
            at_equal = float(np.interp(np.log(size), np.log(sizes), rises))
            rows.append({
                "network": name, "kept": share, "bits": bits, "bytes": size,
                "bits a channel": round(rise(copy), 4), "step a layer": round(at_equal, 4),
            })  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="digits,residual,depthwise")
    parser.add_argument("--kept", default="1,0.2,0.07", help="shares of all parameters that are not zero")
    parser.add_argument("--seed", type=int, default=0, help="of the dense model and its fine-tunes")
    parser.add_argument("--cache", type=Path, default=Path("mlruns/cache"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = [float(share) for share in options.kept.split(",")]
    rows = []
    for name in options.workloads.split(","):
        rows += measured(workload_named(name), name, kept, options.seed, options.cache)
    print(render(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    names = {"prunefront": version("prunefront"), "torch": torch.__version__}
    print(json.dumps({"rows": rows, "n": len(rows), "hardware": hardware(), "versions": names}))


if __name__ == "__main__":
    main()
