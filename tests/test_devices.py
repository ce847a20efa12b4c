"""The benchmark of runtimes, each where it is installed: what it writes computes what PyTorch does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

import devices

from search import Workload

pytestmark = pytest.mark.slow
NEEDS = {
    "pytorch": ("torch",), "onnx": ("onnx", "onnxruntime", "onnxscript"), "executorch": ("executorch", "torchao"),
    "litert": ("litert_torch", "ai_edge_litert"), "openvino": ("openvino", "nncf"),
    "vela": ("litert_torch", "ethosu.vela"),
}  # fmt: skip


@pytest.fixture(scope="module")
def workload() -> Workload:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
        )  # fmt: skip

    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = images, torch.arange(64) % 4
    return Workload("small", build, whole, whole, whole, whole)


@pytest.mark.parametrize("runtime", devices.RUNTIMES)
@pytest.mark.filterwarnings("ignore")  # of other people's converters
def test_a_runtime_computes_what_pytorch_does(runtime, workload, tmp_path):
    for module in NEEDS[runtime]:
        pytest.importorskip(module)
    model = workload.build_model().eval()
    image, found = workload.example_input[:1], {}
    with torch.no_grad():
        wanted = model(image)
    for name, write in devices.RUNTIMES[runtime](devices.Variant("dense", 32, model, {}), workload, tmp_path):
        written = found[name] = write()
        assert written.size > 0
        if written.run is not None:
            with torch.no_grad():
                apart = float((written.run(image) - wanted).abs().max() / wanted.abs().max())
            assert apart < (0.1 if "int8" in name else 1e-4), name
        assert (written.estimate is not None) == (runtime == "vela")
    small = [one.size for name, one in found.items() if "int8" in name]
    large = [one.size for name, one in found.items() if "int8" not in name]
    assert not (small and large) or min(small) < min(large)


def test_times_are_of_the_dense_network_in_the_same_round(monkeypatch):
    """A clock that only calls move: the second task takes half as long, the control as long as the first."""
    now = [0.0]
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])

    def taking(seconds: float):
        def task() -> None:
            now[0] += seconds

        return task

    found = devices._timings({3: taking(0.25), 5: taking(0.125)}, 7)
    assert [found[key]["ratio"] for key in (3, 5)] == ["1.000", "0.500"]
    assert (found[5]["low"], found[5]["high"]) == ("0.500", "0.500")
    assert (found[3]["control_low"], found[3]["control_high"]) == ("1.000", "1.000")
    assert devices._timings({}, 7) == {}


def test_a_table_has_a_line_a_file_and_a_column_a_granularity():
    rows = [
        {
            **dict.fromkeys(devices.COLUMNS, ""), "network": "n", "bits": "32", "file": file, "granularity": kind,
            "bytes": "12345", "ms": "0.5", "ratio": "0.25" if timed else "", "low": "0.2" if timed else "",
            "high": "0.3" if timed else "", "difference": "1e-3" if timed else "",
        }
        for file, timed in (("a", True), ("b", False))
        for kind in devices.SPARSITY
    ]  # fmt: skip
    head, *lines = list(devices.tables(rows))
    assert head == "n, weights of 32 bits:\n"
    assert lines[1].startswith("| `a` | 0.5 |  | 12,345; 1e-3; 0.25 [0.20, 0.30] |")
    assert lines[2].endswith("| 12,345 |") and lines[2].count("|") == lines[1].count("|")
