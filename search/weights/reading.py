"""Reading what a weights file holds, without running any code."""

from __future__ import annotations

import argparse
import itertools
import pathlib
import pickletools
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pruning.sparse_file import LATER
from search.errors import EnvironmentProblem, Refused, UsageError
from search.weights.unreadable import what_it_is
from search.weights.unwrap import DEEPEST
from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import unknown

ENTRY = "#"
"""Between a file and the entry of it that is meant, as in `last.pt#ema`, or what its names begin with."""
_SCALAR: Any = np.float64(0).__reduce__()[0]
"""Makes a number of NumPy's from its bytes."""
HARMLESS: list[type | Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]
"""What checkpoints often hold beside their tensors, and runs no code when it is made: arguments, paths, a best
accuracy.
"""
PICKLES_BEFORE = 3
"""In torch files that are no archives, before the one of the object: a number, a version, and what wrote it."""
_UNKNOWN_TO_PYTORCH = re.compile(r"GLOBAL (\S+) was not an allowed global")
_FORBIDDEN = re.compile(r"GLOBAL (\S+) whose module \S+ is blocked")
"""Such as `posix.system`, which no checkpoint has a use for."""
_ADVICE = re.compile(r"^Weights only load failed\..*?(?:WeightsUnpickler error:|$)\s*", re.DOTALL)
"""What PyTorch says before a reason: how to read the file by running what is in it."""


def read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """The mapping in a weights file, or in the entry of it that `FILE#ENTRY` names, its tensors checked to be plain.

    Args:
        path: safetensors, or a torch file that loads without running code.

    Raises:
        EnvironmentProblem: no such file.
        Refused: a damaged file, or one that cannot be read without running code.
        UsageError: no such entry.
    """
    file, entry = _file_and_entry(path)
    if not file.is_file():
        raise EnvironmentProblem(f"no weights file {str(file)!r}: check --weights, or --pretrained")
    content = _content_of(file)
    if not isinstance(content, Mapping):
        raise Refused(f"weights {file} hold a {type(content).__name__}, not a state dict: save model.state_dict()")
    _require_plain(content, file, DEEPEST)
    if not any(True for _ in _tensors_in(content, DEEPEST)):
        raise Refused(f"weights {file} hold no named tensor: save model.state_dict()")
    return _entry_of(content, entry, file) if entry else content


def _file_and_entry(path: Path) -> tuple[Path, str]:
    """A file whose own name has a `#` is meant as a whole."""
    file, mark, entry = str(path).rpartition(ENTRY)
    return (Path(file), entry) if mark and not path.is_file() else (path, "")


def _entry_of(content: Mapping[Any, Any], entry: str, file: Path) -> Mapping[Any, Any]:
    """The mapping at a dotted place in a checkpoint; a word may also be one that names of tensors begin with."""
    found: Any = content
    for word in entry.split("."):
        known = {str(key): value for key, value in found.items() if isinstance(value, Mapping)}
        for key, value in found.items():
            first, dot, rest = key.partition(".") if isinstance(key, str) else ("", "", "")
            if dot and first not in found and isinstance(value, Tensor):
                known[first] = {**known.get(first, {}), rest: value}
        if word not in known:
            raise UsageError(f"weights {file.name}: {unknown('entry', word, known)}")
        found = known[word]
    return found


def _content_of(path: Path) -> Any:
    try:
        content = path.read_bytes()
        if content.startswith(LATER):
            raise Refused(f"weights {path} are a sparse file: give the model.safetensors that was exported beside it")
        return load(content)
    except SafetensorError as safetensors_error:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # garbage makes readers raise anything
            if said := _conversion(path, str(error)) or what_it_is(path, content):
                raise Refused(said) from None
            raise Refused(
                f"weights {path} are neither safetensors ({first_line(safetensors_error)}) nor a torch file that "
                f"loads without running code ({_reason(error)}); save model.state_dict() with safetensors"
            ) from None


def _conversion(path: Path, said: str) -> str | None:
    """How to convert a file that PyTorch reads only by running code, or not to; None where it is none of PyTorch's."""
    if _is_scripted(path):
        return (
            f"weights {path} are a scripted network, which holds code: where you trust it, save its weights by "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
        )
    if found := _FORBIDDEN.search(said):
        return (
            f"weights {path} would run {shortened(found[1], LONGEST_WORD)} when they are read: do not trust the file, "
            "ask for its weights as safetensors"
        )
    found = _UNKNOWN_TO_PYTORCH.search(said)
    if not found:
        return None
    is_network = _is_network(path, found[1])
    saved = (
        "torch.save(found.state_dict(), 'weights.pt')" if is_network
        else "torch.save(found['state_dict'], 'weights.pt'), or found['model'].state_dict() of a whole network"
    )  # fmt: skip
    return (
        f"weights {path} {'are a whole network' if is_network else 'hold more than tensors'}, and reading "
        f"{shortened(found[1], LONGEST_WORD)} would run code: where you trust the file, convert it by "
        f"found = torch.load({path.name!r}, weights_only=False); {saved}"
    )


def _is_network(path: Path, kind: str) -> bool:
    """Whether all of a torch file is one object of this class, with what every `nn.Module` has."""
    try:
        start = _start_of_pickle(path)
    except Exception:  # a damaged file
        return False
    made = [(code, word) for code, word in start if code not in ("PROTO", "MARK", "BINPUT")]
    if made[:1] == [("BINUNICODE", "module")]:  # what files before PyTorch 1.6 have before a network's class
        del made[0]
    (_, first), *_ = made
    return isinstance(first, str) and first.replace(" ", ".") == kind and "_parameters" in {word for _, word in made}


def _start_of_pickle(path: Path) -> list[tuple[str, Any]]:
    """The first instructions, with their words, of the object in a torch file."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            (content,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            pickled: IO[bytes] = stack.enter_context(archive.open(content))
        else:
            pickled = stack.enter_context(path.open("rb"))
            for _ in range(PICKLES_BEFORE):
                deque(pickletools.genops(pickled), 0)
        return [(code.name, word) for code, word, _ in itertools.islice(pickletools.genops(pickled), 64)]


def _is_scripted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # no archive, or a damaged one
        return False


def _tensors_in(content: Any, depth: int) -> Iterator[Tensor]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor) and isinstance(key, str):
            yield value
        elif depth:
            yield from _tensors_in(value, depth - 1)


def _require_plain(content: Mapping[Any, Any], path: Path, depth: int) -> None:
    for tensor in _tensors_in(content, depth):
        kind = (
            "on the device meta, without numbers" if tensor.is_meta
            else "quantized" if tensor.is_quantized
            else "sparse" if tensor.layout != torch.strided
            else "a view of more elements than it stores"
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
            else None
        )  # fmt: skip
        if kind:
            raise Refused(
                f"weights {path} hold a tensor of shape {tuple(tensor.shape)} that is {kind}: save plain ones"
            )


def _reason(error: BaseException) -> str:
    """Why PyTorch does not read a file, without its advice to run what is in it."""
    return _first_line(_ADVICE.sub("", str(error)), error)


def first_line(error: BaseException) -> str:
    """What an error says first, in at most 200 characters."""
    return _first_line(str(error), error)


def _first_line(said: str, error: BaseException) -> str:
    return (said.splitlines() or [type(error).__name__])[0][:200]
