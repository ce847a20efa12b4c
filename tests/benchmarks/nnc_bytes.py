"""Bytes that the NNC codec (ISO/IEC 15938-17, PyPI `nncodec`) takes for whole numbers.

It is run by an environment of its own, which `bytes.py --make-nnc` makes:

    PYTHON tests/benchmarks/nnc_bytes.py INTEGERS.npz

Prints one JSON line: `payload`, the coded values of all tensors, each at the better of coding its rows' zeros apart or
not; `file`, the whole bitstream, which is decoded and compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from nncodec import nnc
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

UNARY = 11
"""nncodec's own default (`cabac_unary_length_minus1` of 10)."""


def payload(values: np.ndarray) -> int:
    """Bytes of one tensor."""
    found = []
    for skip in (0, 1):
        rows = np.array([int(skip and not row.any()) for row in values], np.int32)
        encoder = deepCABAC.Encoder()
        encoder.initCtxModels(UNARY, 1)
        encoder.encodeLayer(values, 0, 0, skip, 0, skip, rows, *HDSP_OPTS_OFF(), 0, 0)
        found.append(len(encoder.finish().tobytes()))
    return min(found)


def main() -> None:
    tensors = {name: values.astype(np.int32) for name, values in np.load(sys.argv[1]).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nnc"
        stream = nnc.compress(tensors, bitstream_path=str(path), return_bitstream=True, use_dq=False)
        back = nnc.decompress(str(path))
    same = all(np.array_equal(np.asarray(back[name]).reshape(values.shape), values) for name, values in tensors.items())
    found = {"payload": sum(map(payload, tensors.values())), "file": len(stream), "same": same}
    print(json.dumps(found | {"nncodec": version("nncodec")}))


if __name__ == "__main__":
    main()
