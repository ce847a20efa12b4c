"""A network through the NNC codec (ISO/IEC 15938-17, PyPI `nncodec`), at one or more quantisation parameters.

It is run by an environment of its own, which `bytes.py --make-nnc` makes:

    PYTHON tests/benchmarks/nnc_network.py STATE.npz FOLDER -34 -30 -26

STATE.npz holds the float32 tensors of a state dict. For each parameter, `FOLDER/QP.npz` is what the decoder gives back;
one JSON line says the bytes of each bitstream.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from nncodec import nnc


def main() -> None:
    state, folder = dict(np.load(sys.argv[1])), Path(sys.argv[2])
    sizes = {}
    for word in sys.argv[3:]:
        path = folder / "network.nnc"
        stream = nnc.compress(state, bitstream_path=str(path), qp=int(word), return_bitstream=True)
        back = nnc.decompress(str(path))
        sizes[word] = len(stream)
        np.savez(folder / f"{word}.npz", **{n: np.asarray(back[n], np.float32).reshape(state[n].shape) for n in state})
    print(json.dumps({"bytes": sizes, "nncodec": version("nncodec")}))


if __name__ == "__main__":
    main()
