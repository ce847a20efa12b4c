"""Times a network in an ONNX file by onnxruntime: `python -m search.export.time_onnx FILE [--threads N]`.

Prints the seconds of one forward pass of one example, the median of its runs: a command for `--latency-command`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DESCRIPTION = "Print the seconds of one forward pass of the network in an ONNX file, by onnxruntime."
WARM_UP_RUNS = 3
LEAST_RUNS, MOST_RUNS = 5, 100
MOST_THREADS = 1024
RUN_SECONDS = 1.0
"""No run begins later, once there are the least."""
FOLD = "session.disable_quant_qdq"
"""ONNX Runtime's option by which stored integers become floats once, as the file is loaded, and not in every run."""


def seconds_of_a_pass(file: Path, threads: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median over up to `MOST_RUNS` runs on the CPU, after a few that do not count.

    Inputs are ones, of one example; other free dimensions are 1 too. Weights that are integers in a file that computes
    with floats, as an export's of up to 8 bits, are made floats before the first run.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if _only_stores_integers(file):
        options.add_session_config_entry(FOLD, "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    kinds: dict[str, Any] = {
        "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
        "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
    }  # fmt: skip
    given: dict[str, Any] = {
        of.name: np.ones([size if isinstance(size, int) else 1 for size in of.shape], kinds.get(of.type, np.float32))
        for of in session.get_inputs()
    }
    for _ in range(WARM_UP_RUNS):
        session.run(None, given)
    taken: list[float] = []
    ends = clock() + RUN_SECONDS
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and clock() < ends):
        began = clock()
        session.run(None, given)
        taken.append(clock() - began)
    return statistics.median(taken)


def _only_stores_integers(file: Path) -> bool:
    """Whether no activation of a network is an integer, though weights are."""
    import onnx

    kinds = {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
    return "DequantizeLinear" in kinds and not kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}


def _threads(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {MOST_THREADS}, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m search.export.time_onnx", description=DESCRIPTION)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=_threads, default=1, metavar="N", help="of an operator (1)")
    given = parser.parse_args()
    print(f"{seconds_of_a_pass(given.file, given.threads):.9f}")


if __name__ == "__main__":
    main()
