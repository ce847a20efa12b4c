"""What a weights file is that no reader takes, told by its bytes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

AGAIN = "copy or download it again"
TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which files that are no zip archives begin, pickled."""
PICKLE = b"\x80"
ZIP = b"PK\x03\x04"
LFS = b"version https://git-lfs"
PAGES = b"<!doctype html", b"<html"


def what_it_is(path: Path, content: bytes) -> str | None:
    """In one line, with the remedy; None where it is not known, and only a reader's own words can be handed on.

    Args:
        content: all bytes of a file that neither safetensors nor PyTorch reads.
    """
    found = _kind(path.name, content)
    return f"weights {path} are {found}" if found else None


def _kind(name: str, content: bytes) -> str | None:
    if not content:
        return f"an empty file: {AGAIN}"
    if content.startswith(LFS):
        return "a pointer of Git LFS to the file that is meant: run git lfs pull"
    if content.lstrip()[: len(PAGES[0])].lower().startswith(PAGES):
        return "a page of the web: download the file itself"
    if content.startswith(ZIP):
        return _archive(name, content)
    if content.startswith(TORCH_BEFORE_1_6) or _is_cut_safetensors(content):
        return f"cut short or damaged: {AGAIN}"
    if content.startswith(PICKLE):
        return (
            "a pickle that torch.save did not write, and reading it would run code: where you trust the file, convert "
            f"it by found = pickle.loads(pathlib.Path({name!r}).read_bytes()); torch.save({{name: "
            "torch.as_tensor(values) for name, values in found.items()}, 'weights.pt')"
        )
    return None


def _archive(name: str, content: bytes) -> str | None:
    """A zip archive has its list of files at its end."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = archive.namelist()
    except Exception:  # as readers of damaged files raise anything
        return f"cut short or damaged: {AGAIN}"
    if not all(file.endswith(".npy") for file in files):
        return None
    return (
        "arrays of NumPy: convert them by torch.save({name: torch.as_tensor(values) for name, values in "
        f"numpy.load({name!r}).items()}}, 'weights.pt')"
    )


def _is_cut_safetensors(content: bytes) -> bool:
    """Whether a file of safetensors ends before its header, or the last tensor that it names."""
    length = 8 + int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" or length > len(content):
        return content[8:9] == b"{"
    try:
        header = json.loads(content[8:length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(length + max(ends) > len(content))
    except Exception:  # a header that is none
        return False
