"""Which granularity for which target: what a device or runtime does with each, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("CPU", "GPU", "NPU", "sparse runtime")


@dataclass(frozen=True)
class Statement:
    """What one granularity brings on one target.

    Attributes:
        granularities: those it holds for.
        target: one of `TARGETS`.
        effect: in a few words; size is always that of our sparse file.
        source: where it is stated or was measured.
    """

    granularities: tuple[str, ...]
    target: str
    effect: str
    source: str


_NO_SPEED = "dense kernels multiply the zeros: smaller file, no speed"
_MASKS = ("fine-grained", "vector", "kernel", "1:4", "*:4", "*:8")
STATEMENTS = (
    Statement((*_MASKS, "2:4"), "CPU", _NO_SPEED, "github.com/pytorch/tutorials issue 905"),
    Statement(_MASKS, "GPU", _NO_SPEED, "github.com/NVIDIA/TensorRT issue 3282: 2:4 only"),
    Statement(
        ("fine-grained",), "NPU", "Core ML stores them compressed; some layers faster from 75 % on",
        "coremltools guide, Pruning: performance",
    ),
    Statement(
        ("fine-grained",), "sparse runtime",
        "XNNPACK on ARM and WebAssembly: 1 x 1 convolutions 1.3 to 2.4 times faster from about 70 % on",
        "Fast Sparse ConvNets, arXiv 1911.09723",
    ),
    Statement(
        ("fine-grained",), "sparse runtime", "ONNX Runtime makes sparse weights dense when it loads them: no speed",
        "github.com/microsoft/onnxruntime issue 5578",
    ),
    Statement(("vector", "kernel"), "sparse runtime", "no maintained runtime is known that uses them", "none found"),
    Statement(
        ("2:4",), "GPU",
        "linear layers in half precision or int8 from compute capability 8.0 on; slower than dense at small batches",
        "torch/sparse/semi_structured.py; github.com/pytorch/pytorch issue 111339",
    ),
    Statement(("1:4",), "GPU", "is a 2:4 pattern as well, and runs where that does", "follows from the pattern"),
    Statement(
        ("channel",), "CPU",
        "smaller dense layers: faster, in steps of the kernels' widths (multiples of 8 or 16 are safe)",
        "github.com/VainF/Torch-Pruning issue 38; arXiv 2002.08697",
    ),
    Statement(("channel",), "GPU", "smaller dense layers: faster in steps, slower for some counts", "arXiv 2002.08697"),
    Statement(("channel",), "NPU", "smaller dense layers: nothing special is needed", "follows from the shapes"),
)  # fmt: skip
"""Every statement, masks first."""
