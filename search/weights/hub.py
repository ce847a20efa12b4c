"""Weights of a network that an entry of a `torch.hub` repository makes, by running its code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from search.errors import EnvironmentProblem, Refused, UsageError
from search.files import write_durably
from search.user_code.loading import call_user
from search.weights.reading import first_line

HUB = "hub:"
"""What such weights begin with."""
CODE = "hubconf.py"
"""The file of a repository that names its entries."""


def hub_weights(spec: str, cache: Path, trusted: bool) -> Path:
    """A file of the weights; once fetched they stay in `cache`, and no code is run again for them.

    Args:
        spec: `hub:OWNER/REPO:ENTRY`, with `OWNER/REPO:BRANCH` for a branch, or `hub:FOLDER:ENTRY` for a repository on
            this machine.
        trusted: whether the user asked for its code to be run.

    Raises:
        Refused: its code would have to run, and the user did not ask for that.
        UsageError: not of that form, or the entry fails or returns no network.
        EnvironmentProblem: it cannot be fetched.
    """
    place, _, entry = spec.removeprefix(HUB).rpartition(":")
    folder = Path(place).expanduser()
    is_here = bool(place) and folder.is_dir()
    if not entry.isidentifier() or (not is_here and (place.startswith((".", "~")) or place.count("/") != 1)):
        raise UsageError(
            f"weights of a hub must be named as {HUB}OWNER/REPO:ENTRY, or {HUB}FOLDER:ENTRY with a folder that exists, "
            f"got {spec!r}"
        )
    if is_here and not (folder / CODE).is_file():
        raise UsageError(f"{spec!r}: the folder {str(folder)!r} holds no {CODE}")
    kept = cache / f"hub-{_digest(folder.resolve() if is_here else None, spec)}.safetensors"
    if kept.is_file():
        return kept
    if not trusted:
        raise Refused(
            f"{spec!r} runs the code of {place}: give --trust-remote-code if you trust it, or its weights as a file"
        )
    write_durably(kept, save(_state_of(spec, str(folder) if is_here else place, entry, is_here)))
    return kept


def _digest(folder: Path | None, spec: str) -> str:
    """Of the name, and of the code where it is on this machine."""
    hasher = hashlib.sha256(spec.encode())
    for path in sorted(folder.glob("*.py")) if folder else ():
        hasher.update(str(path).encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def _state_of(spec: str, place: str, entry: str, is_here: bool) -> dict[str, Tensor]:
    found = call_user(repr(spec), _made, spec, place, entry, is_here)
    # a network may have hidden its own method by an attribute of that name
    state = nn.Module.state_dict(found) if isinstance(found, nn.Module) else found
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{spec!r} returns a {type(found).__name__}, not a network")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _made(spec: str, place: str, entry: str, is_here: bool) -> Any:
    source = "local" if is_here else "github"
    how: dict[str, Any] = {"source": source, "trust_repo": True, "verbose": False}
    try:
        try:
            return torch.hub.load(place, entry, pretrained=True, **how)
        except TypeError:  # an entry that has no such parameter
            return torch.hub.load(place, entry, **how)
    except OSError as error:
        raise EnvironmentProblem(
            f"{spec!r} cannot be fetched ({first_line(error)}): name a folder that holds it, or a file of its weights"
        ) from None
