"""Which granularity and how many bits for which target: what a device or runtime does with each, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("CPU", "GPU", "NPU", "sparse runtime")
"""Kinds of device; what is smaller there is our sparse file."""
RUNTIMES = (
    "ONNX Runtime, CPU", "ExecuTorch, XNNPACK", "LiteRT, XNNPACK", "OpenVINO, CPU", "Arm Ethos-U85", "TensorRT",
    "Core ML",
)  # fmt: skip
"""Runtimes that a network is exported to; what is smaller there is their own file."""
TARGETS = (*KINDS, *RUNTIMES)
MEASURED = "measured, tests/benchmarks/devices.csv"
"""The source of figures of our own."""


@dataclass(frozen=True)
class Statement:
    """What granularities, or bits, bring on one target.

    Attributes:
        granularities: those it holds for; none where it is of bits alone.
        target: one of `TARGETS`.
        effect: in a few words; ratios are to the dense network of 32 bits, with the 95 % interval of their median.
        source: where it is stated or was measured.
        smaller: whether the file is.
        faster: whether the network is.
        bits: of weights and activations that it holds for; none where it holds for floats.
    """

    granularities: tuple[str, ...]
    target: str
    effect: str
    source: str
    smaller: bool
    faster: bool
    bits: tuple[int, ...] = ()

    @property
    def subject(self) -> str:
        """What it is of, in words."""
        return ", ".join([*self.granularities, *(f"{bits} bits" for bits in self.bits)])

    @property
    def verdict(self) -> str:
        """Smaller, faster, both or neither."""
        words = [word for word, holds in (("smaller", self.smaller), ("faster", self.faster)) if holds]
        return " and ".join(words) or "neither smaller nor faster"


_NO_SPEED = "dense kernels multiply the zeros: smaller file, no speed"
_MASKS = ("fine-grained", "vector", "kernel", "1:4", "*:4", "*:8")
_ALL_MASKS = (*_MASKS, "2:4")
_TENSORRT = "github.com/NVIDIA/TensorRT issue 3282: 2:4 only"
_VELA = "estimated by Vela, tests/benchmarks/devices.csv"
STATEMENTS = (
    Statement(_ALL_MASKS, "CPU", _NO_SPEED, "github.com/pytorch/tutorials issue 905", True, False),
    Statement(_MASKS, "GPU", _NO_SPEED, _TENSORRT, True, False),
    Statement(
        ("fine-grained",),
        "NPU",
        "Core ML stores them compressed; some layers faster from 75 % on",
        "coremltools guide, Pruning: performance",
        True,
        True,
    ),
    Statement(
        ("fine-grained",),
        "sparse runtime",
        "XNNPACK on ARM and WebAssembly: 1 x 1 convolutions 1.3 to 2.4 times faster from about 70 % on",
        "Fast Sparse ConvNets, arXiv 1911.09723",
        True,
        True,
    ),
    Statement(
        ("fine-grained",),
        "sparse runtime",
        "ONNX Runtime makes sparse weights dense when it loads them: no speed",
        "github.com/microsoft/onnxruntime issue 5578",
        True,
        False,
    ),
    Statement(
        ("vector", "kernel"),
        "sparse runtime",
        "no maintained runtime is known that uses them",
        "none found",
        True,
        False,
    ),
    Statement(
        ("2:4",),
        "GPU",
        "linear layers in half precision or int8 from compute capability 8.0 on; slower than dense at small batches",
        "torch/sparse/semi_structured.py; github.com/pytorch/pytorch issue 111339",
        True,
        True,
    ),
    Statement(
        ("1:4",), "GPU", "is a 2:4 pattern as well, and runs where that does", "follows from the pattern", True, True
    ),
    Statement(
        ("channel",),
        "CPU",
        "smaller dense layers: faster, in steps of the kernels' widths (multiples of 8 or 16 are safe)",
        "github.com/VainF/Torch-Pruning issue 38; arXiv 2002.08697",
        True,
        True,
    ),
    Statement(
        ("channel",),
        "GPU",
        "smaller dense layers: faster in steps, slower for some counts",
        "arXiv 2002.08697",
        True,
        True,
    ),
    Statement(
        ("channel",), "NPU", "smaller dense layers: nothing special is needed", "follows from the shapes", True, True
    ),
    # runtimes
    Statement(
        _ALL_MASKS,
        "ONNX Runtime, CPU",
        "zeros are multiplied: 90 % fine-grained 1.01 [1.00, 1.02] on digits, 1.01 [1.00, 1.01] on resnet18",
        MEASURED,
        False,
        False,
    ),
    Statement(
        ("channel",),
        "ONNX Runtime, CPU",
        "half of all channels: 0.78 [0.77, 0.79] on digits, 0.28 [0.27, 0.28] on resnet18",
        MEASURED,
        True,
        True,
    ),
    Statement(
        (),
        "ONNX Runtime, CPU",
        "weights and activations: slower on digits, 1.13 [1.12, 1.14]; faster on resnet18, 0.77 [0.75, 0.77]",
        MEASURED,
        True,
        True,
        bits=(8,),
    ),
    Statement(
        _ALL_MASKS,
        "ExecuTorch, XNNPACK",
        "zeros are multiplied: 90 % fine-grained 1.00 [0.98, 1.03] on digits, 1.01 [0.99, 1.03] on resnet18",
        MEASURED,
        False,
        False,
    ),
    Statement(
        ("channel",),
        "ExecuTorch, XNNPACK",
        "half of all channels: 0.48 [0.47, 0.48] on digits, 0.28 [0.28, 0.29] on resnet18",
        MEASURED,
        True,
        True,
    ),
    Statement(
        (),
        "ExecuTorch, XNNPACK",
        "weights and activations, nothing pruned: 0.53 [0.52, 0.54] on digits, 0.31 [0.31, 0.32] on resnet18",
        MEASURED,
        True,
        True,
        bits=(8,),
    ),
    Statement(
        _ALL_MASKS,
        "LiteRT, XNNPACK",
        "zeros are multiplied: 90 % fine-grained 1.02 [0.99, 1.04] on digits, 1.00 [0.97, 1.00] on resnet18",
        MEASURED,
        False,
        False,
    ),
    Statement(
        ("channel",),
        "LiteRT, XNNPACK",
        "half of all channels: 0.40 [0.38, 0.40] on digits, 0.28 [0.27, 0.28] on resnet18",
        MEASURED,
        True,
        True,
    ),
    Statement(
        (),
        "LiteRT, XNNPACK",
        "weights and activations: no faster on digits, 1.01 [1.00, 1.02]; faster on resnet18, 0.30 [0.29, 0.30]",
        MEASURED,
        True,
        True,
        bits=(8,),
    ),
    Statement(
        _ALL_MASKS,
        "OpenVINO, CPU",
        "zeros are multiplied: 90 % fine-grained 1.01 [0.97, 1.04] on digits, 1.02 [1.01, 1.03] on resnet18",
        MEASURED,
        False,
        False,
    ),
    Statement(
        ("channel",),
        "OpenVINO, CPU",
        "half of all channels: 0.83 [0.79, 0.87] on digits, 0.30 [0.29, 0.30] on resnet18",
        MEASURED,
        True,
        True,
    ),
    Statement(
        (),
        "OpenVINO, CPU",
        "weights and activations, nothing pruned: 0.90 [0.86, 0.92] on digits, 0.29 [0.29, 0.29] on resnet18",
        MEASURED,
        True,
        True,
        bits=(8,),
    ),
    Statement(
        (*_MASKS, "2:4"),
        "Arm Ethos-U85",
        "90 % fine-grained: 30,912 of 142,032 bytes, 0.81 of the time on digits (0.97 on resnet18); 2:4 0.66 (0.67)",
        _VELA,
        True,
        True,
    ),
    Statement(
        ("channel",),
        "Arm Ethos-U85",
        "half of all channels: 40,464 of 142,032 bytes, 0.33 of the time on digits (0.33 on resnet18)",
        _VELA,
        True,
        True,
    ),
    Statement(
        (),
        "Arm Ethos-U85",
        "needs 8 bits: floats do not run on it",
        "ethos-u-vela: needs quantised weights and activations",
        True,
        True,
        bits=(8,),
    ),
    Statement(
        ("fine-grained", "vector", "kernel"), "TensorRT", "zeros are stored and multiplied", _TENSORRT, False, False
    ),
    Statement(
        ("*:4", "*:8"), "TensorRT", "only where N is at most 2 of 4 does a layer run as 2:4", _TENSORRT, False, False
    ),
    Statement(
        ("2:4", "1:4"),
        "TensorRT",
        "from Ampere on, where a layer's sparse kernel is the faster one",
        "developer.nvidia.com, Accelerating Inference with Sparsity",
        True,
        True,
    ),
    Statement(
        ("channel",),
        "TensorRT",
        "faster in steps; a fifth of YOLOv8s brought nothing on a Jetson Nano",
        "arXiv 2002.08697; github.com/NVIDIA/TensorRT issue 3884",
        True,
        True,
    ),
    Statement(
        (),
        "TensorRT",
        "integer tensor cores, from files in QDQ form",
        "developer.nvidia.com, Sparsity in INT8",
        True,
        True,
        bits=(8,),
    ),
    Statement(
        ("fine-grained",),
        "Core ML",
        "ResNet-50 at 75 % on an iPhone 14 Pro: 3.17 times smaller, 1.52 to 1.28 ms",
        "coremltools guide, Pruning: performance",
        True,
        True,
    ),
    Statement(
        ("vector", "kernel", "2:4", "1:4", "*:4", "*:8"),
        "Core ML",
        "zeros are stored as a bit mask, whatever their pattern",
        "coremltools, prune_weights",
        True,
        False,
    ),
    Statement(
        ("channel",),
        "Core ML",
        "smaller dense layers: nothing special is needed",
        "follows from the shapes",
        True,
        True,
    ),
    Statement(
        (),
        "Core ML",
        "weights of 8 bits; activations too on newer chips",
        "coremltools guide, Quantization",
        True,
        True,
        bits=(8,),
    ),
)
"""Every statement, masks first, kinds of device before runtimes."""
