"""What a study writes down of its network besides results, so that readers need no PyTorch: layers and sensitivity."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from search.files import read_text, write_durably
from search.store.folder import StudyFolder
from spaces.cost.footprint import dense_footprint
from spaces.network import Network
from spaces.printable import printable
from spaces.sensitivity import Profile
from spaces.strict_json import parse_object
from spaces.validation import is_number

OUTLINE_VERSION = 1
Read = TypeVar("Read")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerOutline:
    """One prunable layer of the dense model.

    Attributes:
        kind: as of `spaces.network.Layer`.
        macs: of one example.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return prod(self.shape)


@dataclass(frozen=True)
class NetworkOutline:
    """The dense model in outline.

    Attributes:
        layers: the prunable ones, in the order of the network.
        parameters: of the whole model, biases and norms included.
        macs: likewise, of one example.
    """

    layers: tuple[LayerOutline, ...]
    parameters: int
    macs: int

    @classmethod
    def of(cls, network: Network) -> NetworkOutline:
        """The outline of a traced network."""
        cost = dense_footprint(network)
        layers = (LayerOutline(x.name, x.kind, tuple(x.shape), x.positions * x.numel) for x in network.prunable)
        return cls(tuple(layers), cost.parameters, cost.macs)

    def parameter_shares(self) -> dict[str, float]:
        """Layer -> its share of the model's parameters."""
        return {layer.name: layer.parameters / self.parameters for layer in self.layers}

    def mac_shares(self) -> dict[str, float]:
        """Layer -> its share of the model's MACs; all are 0 where none are counted."""
        return {layer.name: layer.macs / self.macs if self.macs else 0.0 for layer in self.layers}


def write_outline(folder: StudyFolder, outline: NetworkOutline) -> None:
    """Write `network.json` of a study, unless it says so already."""
    _write(folder.path / "network.json", json.dumps({"version": OUTLINE_VERSION, **asdict(outline)}) + "\n")


def write_profile(folder: StudyFolder, profile: Profile) -> None:
    """Write the study's own copy of its sensitivity profile, `profile.json`, unless it is there already."""
    _write(folder.path / "profile.json", profile.to_json())


def shown_outline(folder: StudyFolder) -> NetworkOutline | None:
    """The outline of a study's network; None of a study that was last run by a version without it. A damaged one is
    named in a warning, and counts as none.
    """
    return _shown(folder.path / "network.json", _outline)


def shown_profile(folder: StudyFolder) -> Profile | None:
    """The study's profile; None without a scan, before it, and as `shown_outline` says."""
    return _shown(folder.path / "profile.json", Profile.from_json)


def _write(path: Path, text: str) -> None:
    try:
        if read_text(path) == text:
            return
    except (OSError, ValueError):
        pass
    write_durably(path, text.encode())


def _shown(path: Path, parse: Callable[[str], Read]) -> Read | None:
    if not path.exists():
        return None
    try:
        return parse(read_text(path))
    except (ValueError, OSError) as error:
        log.warning(
            "damaged %s: %s; all else is shown, and the next run of the study writes it", path, printable(error)
        )
        return None


def _outline(text: str) -> NetworkOutline:
    data: dict[str, Any] = parse_object(text)
    if data.pop("version", None) != OUTLINE_VERSION:
        raise ValueError(f"version is not {OUTLINE_VERSION}")
    try:
        layers = tuple(LayerOutline(**{**one, "shape": tuple(one["shape"])}) for one in data.pop("layers"))
        found = NetworkOutline(layers, **data)
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from None
    counts = [found.parameters, found.macs, *(n for layer in layers for n in (layer.macs, *layer.shape))]
    if not all(is_number(count) and count >= 0 for count in counts):
        raise ValueError("counts and shapes must be numbers >= 0")
    if not layers or any(layer.parameters < 1 for layer in layers):
        raise ValueError("there must be layers, and each must have parameters")
    if not all(isinstance(word, str) for layer in layers for word in (layer.name, layer.kind)):
        raise ValueError("names and kinds of layers must be text")
    if sum(layer.parameters for layer in layers) > found.parameters:
        raise ValueError("layers have more parameters than the network")
    return found
