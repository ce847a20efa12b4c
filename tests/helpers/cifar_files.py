"""CIFAR-10's files, made by hand as they are published; `pyproject.toml` puts this folder on the path."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np

NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
EACH = 20


def as_python_2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The bytes that Python 2 and its NumPy pickled, as the published files are: text is bytes, arrays are text."""

    def text(word: str) -> bytes:
        return b"U" + bytes([len(word)]) + word.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text("b") + b"tR"
    kind = b"cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR(K\x03" + text("|") + b"NNNJ" + b"\xff" * 4
    kind += b"J" + b"\xff" * 4 + b"K\x00tb"
    state = b"(K\x01(" + b"".join(map(number, pixels.shape)) + b"t" + kind + b"I00\nT" + struct.pack("<i", len(raw))
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + text("leptodactylus_pentadactylus_s_000004.png") + b"e"
    return (
        b"\x80\x02}(" + text("batch_label") + text("training batch 1 of 5") + text("labels") + listed
        + text("data") + array + state + raw + b"tb" + text("filenames") + names + b"u."
    )  # fmt: skip


FORMS = {
    "cifar-10-batches-py": ("", as_python_2),
    "again": ("", lambda pixels, labels: pickle.dumps({"data": pixels, "labels": labels}, protocol=2)),
    "bytes": ("", lambda pixels, labels: pickle.dumps({b"data": pixels, b"labels": labels}, protocol=4)),
    "cifar-10-batches-bin": (
        ".bin",
        lambda pixels, labels: b"".join(bytes([n]) + row.tobytes() for row, n in zip(pixels, labels, strict=True)),
    ),
}  # fmt: skip
"""Layout, named by its folder where it has one -> how its files end, and what is in one."""


def write_cifar(
    folder: Path, form: str = "cifar-10-batches-py", each: int = EACH
) -> dict[str, tuple[np.ndarray, list[int]]]:
    random, (ending, written) = np.random.default_rng(7), FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in NAMES:
        pixels, labels = random.integers(0, 256, (each, 3072), np.uint8), random.integers(0, 10, each).tolist()
        (folder / f"{name}{ending}").write_bytes(written(pixels, labels))
        made[name] = (pixels, labels)
    return made
