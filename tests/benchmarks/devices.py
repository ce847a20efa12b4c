"""What is smaller and what is faster in which runtime: the same pruned networks as files of each, on one core.

    python tests/benchmarks/devices.py pytorch | onnx | executorch | litert | openvino | vela
    python tests/benchmarks/devices.py show

A subcommand needs its runtime (`pip install onnxruntime`, `executorch`, `litert-torch`, `openvino nncf`,
`litert-torch ethos-u-vela`), and replaces its lines of `devices.csv` beside this file. The networks are the VGG9 of
`digits` (1/8 width, trained, 8 x 8) and torchvision's resnet18 (random weights, 224 x 224): dense, 90 % of all weights,
vectors or kernels masked, 2:4, and half of all channels removed, none of them fine-tuned, with weights of 32, 8 and 4
bits. Every file is run on the same examples: its largest difference from PyTorch's outputs, relative to the largest of
them, and its latency at batch 1. A round times all files of a network and the dense one once more (A/A control) in a
new random order; a ratio is of the dense network's time in the same round and runtime, with a 95 % interval of its
median. vela runs nothing: it compiles for an Ethos-U85 of 256 MACs and estimates.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from raw_rows import Row, append_rows, read_rows
from safetensors.torch import save_file
from study import hardware
from torch import Tensor, nn
from torchvision_networks import build

from pruning import to_stored_form_, write_sparse
from pruning.copying import copy_model
from pruning.file.rounding import Rounded
from search import Workload, get_workload
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_untrained
from spaces.bits import FLOAT_BITS
from spaces.cost.timing import timed_network
from spaces.policy import PruningPolicy

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "network", "runtime", "version", "file", "granularity", "sparsity", "bits", "bytes", "difference", "ms", "ratio",
    "low", "high", "control_low", "control_high", "rounds", "load",
)  # fmt: skip
SPARSITY = {"dense": 0.0, "fine-grained": 0.9, "vector": 0.9, "kernel": 0.9, "2:4": 0.5, "channel": 0.5}
SHARES = tuple(SPARSITY.items())
BITS = (FLOAT_BITS, 8, 4)
EXAMPLES, CALIBRATION = 8, 64
ROUNDS, RUNS = 15, 3
"""Rounds, and how often a file is timed in each; the fastest counts."""
LEAST_SECONDS = 2e-3
"""Calls in a row take at least so long."""
PACKAGES = {
    "pytorch": "torch", "onnx": "onnxruntime", "executorch": "executorch", "litert": "litert-torch",
    "openvino": "openvino", "vela": "ethos-u-vela",
}  # fmt: skip
ETHOS = "ethos-u85-256"


@dataclass(frozen=True)
class Variant:
    """A network pruned in one way, and its weights as whole numbers where it has few bits."""

    granularity: str
    bits: int
    model: nn.Module
    rounded: Mapping[str, Rounded]


@dataclass(frozen=True)
class Written:
    """A file (or two that belong together) and what runs it; None where nothing does."""

    size: int
    run: Callable[[Tensor], Tensor] | None = None
    estimate: float | None = None


Writer = Callable[[Variant, Workload, Path], Iterator[tuple[str, Callable[[], Written]]]]
"""(network, task, folder) -> the files of a runtime: a name, and what writes one."""


def random_images() -> Workload:
    """resnet18 with random weights, on noise: for bytes and seconds alone."""
    images = torch.randn(CALIBRATION, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    part = images[:EXAMPLES], torch.arange(EXAMPLES)
    whole = images, torch.arange(CALIBRATION)
    return Workload("resnet18", partial(build, "resnet18"), part, whole, part, part, weights="as built")


TASKS = {"digits": partial(get_workload, "digits"), "resnet18": random_images}


def variants(workload: Workload, kinds: Sequence[str], bits: Sequence[int]) -> Iterator[Variant]:
    """Every granularity with every number of bits, the dense network with floats first."""
    with TemporaryDirectory() as cache:
        dense = dense_model(workload, 0, Path(cache)).model
    prepared = PreparedModel.of(workload, dense).scored_by("magnitude-l2")
    layers = prepared.network.layer_names
    for granularity, sparsity in SHARES:
        for width in bits if granularity in kinds else ():
            asked = dict.fromkeys(layers, sparsity) if sparsity else {}
            kind = "fine-grained" if granularity == "dense" else granularity
            policy = PruningPolicy(asked, granularity=kind, bits=width)
            model = evaluate_untrained(prepared, policy).model if asked or policy.is_rounded else dense
            assert model is not None
            rounded = to_stored_form_(copy_model(model), policy.bits) if policy.is_rounded else {}
            yield Variant(granularity, width, _as_loaded(model).eval(), rounded)


def _as_loaded(model: nn.Module) -> nn.Module:
    """A copy with weights in the order that a file's have: two converters fail on those that trained channels last."""
    made = copy_model(model)
    for parameter in made.parameters():
        parameter.data = torch.empty(parameter.shape).copy_(parameter.data)
    return made


def pytorch(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    def dense() -> Written:
        save_file({name: t.contiguous().clone() for name, t in one.model.state_dict().items()}, folder / "m")
        return Written((folder / "m").stat().st_size, one.model)

    yield "model.safetensors", dense
    sparse = "model.prf" if one.rounded else "model.sparse.safetensors"
    yield sparse, lambda: Written(write_sparse(one.model, folder / "s", {n: r.bits for n, r in one.rounded.items()}))


def onnx(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    from search.export.onnx_file import write_onnx
    from search.export.onnx_int8 import write_int8
    from search.export.onnx_network import OnnxNetwork

    def written(path: Path) -> Written:
        like = one.model(workload.example_input)
        return Written(path.stat().st_size, OnnxNetwork(path, like))

    def floats() -> Written:
        write_onnx(one.model, workload.example_input, folder / "f.onnx", one.rounded)
        return written(folder / "f.onnx")

    def int8() -> Written:
        write_int8(one.model, workload, folder / "i.onnx", one.rounded)
        return written(folder / "i.onnx")

    yield "model.onnx", floats
    yield "model.int8.onnx", int8


def executorch(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (workload.example_input[:1],)

    def lowered(model: nn.Module, path: Path) -> Written:
        portable_lib._unsafe_reset_threadpool(1)
        edge = to_edge_transform_and_lower(torch.export.export(model, example), partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)
        method = Runtime.get().load_program(str(path)).load_method("forward")
        return Written(path.stat().st_size, lambda images: method.execute([images])[0])

    def int8() -> Written:
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        observed = prepare_pt2e(torch.export.export(copy_model(one.model), example).module(), quantizer)
        for image in workload.calibration[0][:CALIBRATION]:
            observed(image[None])
        return lowered(convert_pt2e(observed), folder / "i.pte")

    yield "model.pte", lambda: lowered(copy_model(one.model), folder / "f.pte")
    yield "model.int8.pte", int8


def _tflite(one: Variant, workload: Workload, path: Path) -> None:
    import litert_torch

    litert_torch.convert(copy_model(one.model).eval(), (workload.example_input[:1],)).export(str(path))


def _quantized_tflite(one: Variant, workload: Workload, folder: Path) -> Path:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    floats, path = folder / "q.tflite", folder / "i.tflite"
    _tflite(one, workload, floats)
    ((signature, parts),) = Interpreter(str(floats)).get_signature_list().items()
    made = quantizer.Quantizer(str(floats), recipe.static_wi8_ai8())
    examples = [{parts["inputs"][0]: image[None].numpy()} for image in workload.calibration[0][:CALIBRATION]]
    made.quantize(made.calibrate({signature: examples})).export_model(str(path), overwrite=True)
    return path


def litert(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    from ai_edge_litert.interpreter import Interpreter

    def loaded(path: Path) -> Written:
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(image: Tensor) -> Tensor:
            array, (scale, zero) = image.numpy(), given["quantization"]
            if scale:
                array = (array / scale + zero).round().clip(-128, 127).astype("int8")
            interpreter.set_tensor(given["index"], array)
            interpreter.invoke()
            found, (scale, zero) = torch.from_numpy(interpreter.get_tensor(returned["index"])), returned["quantization"]
            return (found.float() - zero) * scale if scale else found

        return Written(path.stat().st_size, run)

    def floats() -> Written:
        _tflite(one, workload, folder / "f.tflite")
        return loaded(folder / "f.tflite")

    yield "model.tflite", floats
    yield "model.int8.tflite", lambda: loaded(_quantized_tflite(one, workload, folder))


def openvino(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    import nncf
    import openvino as ov
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    core, example = ov.Core(), workload.example_input[:1]

    def compiled(network: Any, path: Path) -> Written:
        network.reshape(list(example.shape))
        ov.save_model(network, path, compress_to_fp16=False)
        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        found = core.compile_model(path, "CPU", options)
        size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        return Written(size, lambda image: torch.from_numpy(found(image.numpy())[0]))

    def converted() -> Any:
        return ov.convert_model(copy_model(one.model).eval(), example_input=example)

    def int8() -> Written:
        images = [image[None].numpy() for image in workload.calibration[0][:CALIBRATION]]
        whole_range = nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        )
        made = nncf.quantize(
            converted(), nncf.Dataset(images), subset_size=CALIBRATION, advanced_parameters=whole_range
        )
        return compiled(made, folder / "i.xml")

    yield "model.xml + .bin", lambda: compiled(converted(), folder / "f.xml")
    yield "model.int8.xml + .bin", int8


def vela(one: Variant, workload: Workload, folder: Path) -> Iterator[tuple[str, Callable[[], Written]]]:
    def compiled() -> Written:
        path, out = _quantized_tflite(one, workload, folder), folder / "vela"
        words = [Path(sys.executable).with_name("vela"), path, "--accelerator-config", ETHOS, "--output-dir", out]
        subprocess.run(words, check=True, capture_output=True)
        with next(out.glob("*_summary_*.csv")).open() as file:
            (summary,) = csv.DictReader(file)
        size = next(out.glob("*_vela.tflite")).stat().st_size
        return Written(size, estimate=float(summary["inference_time"]))

    yield "model_vela.tflite", compiled


RUNTIMES: dict[str, Writer] = {
    "pytorch": pytorch, "onnx": onnx, "executorch": executorch, "litert": litert, "openvino": openvino, "vela": vela,
}  # fmt: skip


def measure(runtime: str, network: str, kinds: Sequence[str], bits: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """The lines of one runtime and network."""
    workload = TASKS[network]()
    images = workload.validation[0][:EXAMPLES]
    rows: list[dict[str, Any]] = []
    tasks: dict[int, Callable[[], object]] = {}
    with TemporaryDirectory() as place:
        for one in variants(workload, kinds, bits):
            with torch.inference_mode():
                wanted = [one.model(image[None]) for image in images]
            for name, write in RUNTIMES[runtime](one, workload, _folder(place, one)):
                written = write()
                row = {
                    "network": network, "runtime": runtime, "version": version(PACKAGES[runtime]), "file": name,
                    "granularity": one.granularity, "sparsity": SPARSITY[one.granularity], "bits": one.bits,
                    "bytes": written.size,
                }  # fmt: skip
                if written.run is not None:
                    with torch.inference_mode():
                        found = [written.run(image[None]).clone() for image in images]
                    apart = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
                    row["difference"] = f"{apart / max(float(b.abs().max()) for b in wanted):.1e}"
                    tasks[len(rows)] = partial(written.run, images[:1])
                elif written.estimate is not None:
                    first = rows[0]["seconds"] if rows else written.estimate
                    row |= {"seconds": written.estimate, "ms": f"{written.estimate * 1e3:.4g}"}
                    row["ratio"] = f"{written.estimate / first:.3f}"
                rows.append(row)
                print(row, file=sys.stderr)
        for place_of, timing in _timings(tasks, rounds).items():
            rows[place_of] |= timing
    return [{name: value for name, value in row.items() if name in COLUMNS} for row in rows]


def _folder(place: str, one: Variant) -> Path:
    folder = Path(place, f"{one.granularity}-{one.bits}".replace(":", "-"))
    folder.mkdir()
    return folder


@torch.inference_mode()
def _timings(tasks: Mapping[int, Callable[[], object]], rounds: int) -> dict[int, dict[str, Any]]:
    """What each line says of time; the first is the dense network's, which is timed twice."""
    if not tasks:
        return {}
    control = -1
    arms = {**tasks, control: tasks[min(tasks)]}
    calls = {key: max(1, round(LEAST_SECONDS / min(_seconds(task, 1) for _ in range(5)))) for key, task in arms.items()}
    taken: dict[int, list[float]] = {key: [] for key in arms}
    order, shuffler = [key for key in arms for _ in range(RUNS)], random.Random(0)
    for number in range(rounds + 1):
        shuffler.shuffle(order)
        spent: dict[int, list[float]] = {key: [] for key in arms}
        for key in order:
            arms[key]()
            spent[key].append(_seconds(arms[key], calls[key]))
        if number:
            for key, seconds in spent.items():
                taken[key].append(min(seconds))
    dense = taken[min(tasks)]
    again = timed_network(taken[control], dense)
    found = {}
    for key in tasks:
        one = timed_network(taken[key], dense)
        found[key] = {
            "ms": f"{one.seconds * 1e3:.4g}", "ratio": f"{one.share:.3f}", "low": f"{one.low:.3f}",
            "high": f"{one.high:.3f}", "control_low": f"{again.low:.3f}", "control_high": f"{again.high:.3f}",
            "rounds": rounds, "load": f"{os.getloadavg()[0]:.1f}",
        }  # fmt: skip
    return found


def _seconds(task: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        task()
    return (time.perf_counter() - began) / calls


def run(runtime: str, networks: Sequence[str], kinds: Sequence[str], bits: Sequence[int], rounds: int) -> None:
    """Replace a runtime's lines of some networks."""
    rows: list[Mapping[str, Any]] = []
    for network in networks:
        rows += measure(runtime, network, kinds, bits, rounds)
    kept = [row for row in read_rows(TABLE) if row["runtime"] != runtime or row["network"] not in networks]
    TABLE.unlink(missing_ok=True)
    append_rows(TABLE, COLUMNS, [*kept, *rows])


def cell(row: Row) -> str:
    """Bytes, largest difference, and ratio with its interval, as far as there are any."""
    ratio = f"{float(row['ratio']):.2f}" if row["ratio"] else ""
    ends = f" [{float(row['low']):.2f}, {float(row['high']):.2f}]" if row["low"] else ""
    return "; ".join(part for part in (f"{int(row['bytes']):,}", row["difference"], ratio + ends) if part)


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each network and number of bits: a line for each file, a column for each granularity."""
    for network, bits in dict.fromkeys((row["network"], row["bits"]) for row in rows):
        some = [row for row in rows if (row["network"], row["bits"]) == (network, bits)]
        columns = ["file", "dense, ms", "A/A", *(f"{kind} {share:g}" if share else kind for kind, share in SHARES)]
        yield f"{network}, weights of {bits} bits:\n"
        yield "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"
        for name in dict.fromkeys(row["file"] for row in some):
            own = {row["granularity"]: row for row in some if row["file"] == name}
            first = own["dense"]
            ends = f"[{first['control_low']}, {first['control_high']}]" if first["control_low"] else ""
            cells = [cell(own[kind]) if kind in own else "" for kind in SPARSITY]
            yield "| " + " | ".join([f"`{name}`", first["ms"], ends, *cells]) + " |"
        yield ""


def show() -> None:
    """The tables, and one JSON line."""
    rows = read_rows(TABLE)
    print("\n".join(tables(rows)))
    loads, rounds = (
        [float(row["load"]) for row in rows if row["load"]],
        {row["rounds"] for row in rows if row["rounds"]},
    )
    controls = [float(row[end]) for row in rows if row["control_low"] for end in ("control_low", "control_high")]
    said = {
        "benchmark": "devices", "hardware": hardware(), "threads": 1,
        "versions": {PACKAGES[row["runtime"]]: row["version"] for row in rows}, "n": len(rows),
        "rounds": sorted(map(int, rounds)), "runs": RUNS, "load": [min(loads), max(loads)] if loads else None,
        "controls": [min(controls), max(controls)] if controls else None,
    }  # fmt: skip
    print(json.dumps(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=(*RUNTIMES, "show"))
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{' or '.join(TASKS)}; both")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, choices=BITS)
    parser.add_argument("--granularity", nargs="+", default=[*SPARSITY], choices=[*SPARSITY], help="dense and others")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before any runtime makes its threads
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of other people's converters
    logging.disable(logging.WARNING)
    if options.command != "show":
        run(options.command, options.networks or [*TASKS], options.granularity, options.bits, options.rounds)
    show()


if __name__ == "__main__":
    main()
