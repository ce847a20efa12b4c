"""Bytes of rounded networks: our two versions of the sparse file, lzma, the NNC codec, and the entropy.

    python tests/benchmarks/bytes.py --workloads digits,residual --kept 1,0.2,0.07,0.02 --bits 8,4,3
    python tests/benchmarks/bytes.py --make-nnc ENVIRONMENT     # once; then --nnc ENVIRONMENT/bin/python

Each network is trained (or taken from the cache), pruned by LAMP to so many weights kept, fine-tuned for a trial's
epochs and rounded. All columns but `file v1` and `file v2` are of the rounded weights alone, the same whole numbers:

- `v2`: the coded values, as `file v2` holds them, without scales, header and vectors;
- `nnc`, `nnc file`: the NNC codec's payload of them, and its whole bitstream;
- `lzma`: places as bits and values as bytes, each stream by lzma;
- `H0`: entropy of each tensor's values, zeros included, without a word on how often each occurs.

Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from small_fashion import small_fashion
from study import hardware

from pruning.channels.tracing import trace_channels
from pruning.copying import copy_model
from pruning.file.coding import CodedWriter
from pruning.file.container import decode, encode
from pruning.file.rounding import Rounded
from pruning.file.stored_form import to_stored_form_
from pruning.importance.scores import unit_importance
from pruning.sparse_file import dense_bytes, encode_model
from search.cli.text_tables import render
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.workloads import Workload, get_workload
from search.workloads.vgg import VGG9
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.cost.coded_size import CodedSizes
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

NNC = "nncodec==2.1.3"
HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
COLUMNS = (
    "network", "kept", "bits", "v2", "nnc", "v2/nnc", "nnc file", "lzma", "H0", "file v1", "file v2", "bound",
    "predicted", "seconds",
)  # fmt: skip


def workload_named(name: str) -> Workload:
    """Built in, `small-fashion-SEED`, `digits-full` (VGG9 at width 1), or an example of `tests/examples`."""
    if name.startswith("small-fashion-"):
        return small_fashion(int(name.rpartition("-")[2]))
    if name == "digits-full":
        whole = get_workload("digits")
        recipe = replace(whole.recipe, dense_epochs=6, trial_epochs=2)
        return replace(whole, name=name, build_model=partial(VGG9, 1.0, inputs=1, pools=3), recipe=recipe)
    example = EXAMPLES / f"{name}.py"
    return get_workload(f"{example}:{name}" if example.is_file() else name)


def networks(workload: Workload, kept: list[float], seed: int, cache: Path) -> Iterator[tuple[float, torch.nn.Module]]:
    """The dense network where all is kept, else LAMP's, fine-tuned."""
    dense = dense_model(workload, seed, cache).model
    subject = PreparedModel.of(workload, dense)
    inputs = AllocationInputs(unit_importance(dense, subject.graph, "fine-grained"))
    for share in kept:
        if share == 1:
            yield share, dense
            continue
        try:
            sparsity = allocate("lamp", Target(subject.network, share, metric="nonzero"), inputs)
        except Unreachable as error:
            print(f"{workload.name}, {share:g} kept: {error}", file=sys.stderr)
            continue
        policy = PruningPolicy(sparsity, "fine-grained", schedule=Schedule("one-shot"))
        made = evaluate_policy(subject, policy, workload.recipe.trial_epochs, seed)
        if made.model is None:
            raise RuntimeError(made.result.reason)
        yield share, made.model


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def lzma_bytes(tensors: Mapping[str, np.ndarray]) -> int:
    places = b"".join(np.packbits(values != 0).tobytes() for values in tensors.values())
    held = b"".join(values[values != 0].astype(values.dtype).tobytes() for values in tensors.values())
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return sum(len(lzma.compress(stream, lzma.FORMAT_RAW, filters=filters)) for stream in (places, held))


def nnc_bytes(python: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "integers.npz"
        np.savez(path, **tensors)
        command = [str(python), str(HERE / "nnc_bytes.py"), str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    found = json.loads(said.strip().splitlines()[-1])
    if not found["same"]:
        raise RuntimeError("NNC gave back other numbers than it was given")
    return found


def row(model: torch.nn.Module, bits: int, sizes: CodedSizes, nnc: Path | None) -> dict[str, object]:
    """One network at one number of bits."""
    rounded_model = copy_model(model).cpu()
    rounded: dict[str, Rounded] = to_stored_form_(rounded_model, bits)
    tensors = {name: one.integers.numpy() for name, one in rounded.items()}
    began = time.process_time()
    content = encode(rounded_model.state_dict(), rounded)
    seconds = time.process_time() - began
    back = decode(content, rounded_model.state_dict()).state
    if not all(torch.equal(back[name], tensor) for name, tensor in rounded_model.state_dict().items()):
        raise RuntimeError("version 2 gave back other numbers than it was given")
    writer = CodedWriter()
    for values in tensors.values():
        writer.integers(values, bits)
    own, codec = len(writer.coded()[1]), nnc_bytes(nnc, tensors) if nnc else {}
    kept = np.array([int(model.get_parameter(t.name).count_nonzero()) for t in sizes.layers])
    counts = np.array([t.numel for t in sizes.layers]), kept, np.array(bits)
    return {
        "bits": bits, "v2": own, "nnc": codec.get("payload"), "nnc file": codec.get("file"),
        "v2/nnc": round(own / codec["payload"], 4) if codec else None, "lzma": lzma_bytes(tensors),
        "H0": round(sum(map(entropy_bytes, tensors.values()))), "file v1": len(encode_model(model)),
        "file v2": len(content), "bound": int(sizes.bound(*counts)), "predicted": int(sizes.predicted(*counts)),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="digits,residual,depthwise")
    parser.add_argument("--kept", default="1,0.2,0.07,0.02", help="shares of all parameters that are not zero")
    parser.add_argument("--bits", default="8,4,3")
    parser.add_argument("--seed", type=int, default=0, help="of the dense model and its fine-tunes")
    parser.add_argument("--cache", type=Path, default=Path("mlruns/cache"))
    parser.add_argument("--nnc", type=Path, help="a Python that has nncodec; without it NNC is left out")
    parser.add_argument("--make-nnc", type=Path, help="make an environment with nncodec there, and stop")
    options = parser.parse_args()
    if options.make_nnc:
        venv.create(options.make_nnc, with_pip=True)
        subprocess.run([str(options.make_nnc / "bin/python"), "-m", "pip", "install", NNC], check=True)
        return
    torch.set_num_threads(1)
    kept, bits = [float(s) for s in options.kept.split(",")], [int(b) for b in options.bits.split(",")]
    rows: list[dict[str, object]] = []
    dense: dict[str, int] = {}
    for name in options.workloads.split(","):
        workload = workload_named(name)
        for share, model in networks(workload, kept, options.seed, options.cache):
            model = model.eval()
            dense.setdefault(name, dense_bytes(model))
            sizes = CodedSizes(trace_channels(model, workload.example_input).network)
            for own in bits:
                rows.append({"network": name, "kept": share, **row(model, own, sizes, options.nnc)})
                print(rows[-1], file=sys.stderr, flush=True)
    print(render(COLUMNS, [[r[column] for column in COLUMNS] for r in rows]))
    names = {"prunefront": version("prunefront"), "torch": torch.__version__, "numpy": np.__version__}
    asked = {"seed": options.seed, "nnc": NNC if options.nnc else None, "hardware": hardware(), "versions": names}
    print(json.dumps({"rows": rows, "dense_bytes": dense, "n": len(rows)} | asked))


if __name__ == "__main__":
    main()
