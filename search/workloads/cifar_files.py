"""CIFAR-10's files in the two layouts they are published in; what is pickled there is read without running code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.errors import EnvironmentProblem
from spaces.printable import LONGEST_WORD, shortened

NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
FOLDERS = (".", "cifar-10-batches-py", "cifar-10-batches-bin")
ENDINGS = ("", ".bin")
SHAPE = (3, 32, 32)
"""Channels, height and width; a file holds an image's numbers in this order."""
PIXELS = 3 * 32 * 32
CLASSES = 10


def find_files(folder: Path) -> list[Path] | None:
    """The five files of training images and the one of test images, in a folder or in the published one within it.

    Raises:
        EnvironmentProblem: some of them are there, and others are not.
    """
    for place in (folder / name for name in FOLDERS):
        for ending in ENDINGS:
            paths = [place / f"{name}{ending}" for name in NAMES]
            lacking = [path.name for path in paths if not path.is_file()]
            if not lacking:
                return paths
            if len(lacking) < len(paths):
                raise EnvironmentProblem(f"CIFAR-10 in {str(place)!r} lacks {', '.join(lacking)}: unpack it again")
    return None


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) of bytes and labels (n,) of whole numbers.

    Raises:
        EnvironmentProblem: the file cannot be read, or is none of the data set's.
    """
    try:
        raw = path.read_bytes()
        pixels, labels = _of_records(raw) if path.suffix == ".bin" else _of_pickle(raw)
    except Exception as error:  # garbage makes unpicklers raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EnvironmentProblem(f"{path} is no file of CIFAR-10 images ({said}): unpack it again") from None
    return torch.from_numpy(pixels.reshape(-1, *SHAPE).copy()), torch.from_numpy(labels.astype(np.int64))


def _of_records(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label and the pixels."""
    if not raw or len(raw) % (1 + PIXELS):
        raise ValueError(f"its {len(raw)} bytes are no records of {1 + PIXELS}")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], _checked(records[:, 0], len(records))


def _of_pickle(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A dict with the array `data` and the list `labels`, its names text or bytes."""
    found = _PlainUnpickler(io.BytesIO(raw), encoding="latin1").load()
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}")
    batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise ValueError("it holds no data and labels")
    pixels = data.bytes_of((len(labels), PIXELS))
    return pixels, _checked(np.array(labels), len(labels))


def _checked(labels: np.ndarray, count: int) -> np.ndarray:
    if not count or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"its labels are not whole numbers from 0 to {CLASSES - 1}")
    return labels


class _Array:
    """What an array of NumPy's is pickled as, kept as it is written."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_of(self, shape: tuple[int, int]) -> np.ndarray:
        """The array, which must be one of bytes of this shape."""
        _, own, kind, by_columns, raw = self.state
        if tuple(own) != shape or not isinstance(kind, _Kind) or kind.code != "u1" or by_columns:
            raise ValueError(f"its data are no bytes of shape {shape}")
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(content, np.uint8).reshape(shape)


class _Kind:
    """What a type of NumPy's is pickled as."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes have none of."""


def _encoded(text: str, _: str) -> bytes:
    return text.encode("latin1")


_READ: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encoded,
}
"""What a pickled batch may name, and what stands for it here."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data and arrays, and refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _READ:
            raise ValueError(f"it names {shortened(f'{module}.{name}', LONGEST_WORD)}, which is not run")
        return _READ[module, name]
