"""Which networks there are by name, and building one for the classes and images of a task."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from torch import nn

from search.errors import UsageError
from spaces.printable import LONGEST_WORD, shortened

SOURCES = ("torchvision", "timm")
"""The libraries, as they stand before the `:`."""
EXAMPLE = "torchvision:resnet18"
LARGEST = 100_000_000
"""Parameters of a network up to which its name is taken from a file that others wrote."""
NEAREST = 3
"""How many names are offered for one that does not exist."""


class Library(Protocol):
    """What is known of the networks of one library; all but the first two take a name that there is."""

    def names(self) -> Collection[str]:
        """The names there are."""

    def left_out(self, name: str) -> str | None:
        """What a network is that exists, and cannot be built by name here; None of any other."""

    def own_task(self, name: str) -> tuple[int, tuple[int, int, int]]:
        """How many classes it was published for, and the (channels, height, width) of its images."""

    def build(self, name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
        """The network with fresh weights, for so many classes and images of (channels, height, width)."""

    def kept_weights(self, name: str) -> Path:
        """The file of its published weights, where the library keeps downloads; raises `EnvironmentProblem`."""


def is_network(spec: str) -> bool:
    """Whether a text names a network of a library, be there one of that name or not.

    >>> is_network("torchvision:resnet18"), is_network("digits"), is_network("./timm.py:make")
    (True, False, False)
    """
    source, colon, name = spec.partition(":")
    return source in SOURCES and bool(colon and name.strip())


def lacks_name(spec: str) -> bool:
    """Whether a text is the name of a library, with or without the `:`, and names none of its networks.

    >>> lacks_name("torchvision:"), lacks_name("timm"), lacks_name("torchvision:resnet18")
    (True, True, False)
    """
    source, _, name = spec.partition(":")
    return source in SOURCES and not name.strip()


def find_network(spec: str) -> tuple[Library, str]:
    """The library and the name of a network that exists.

    Raises:
        UsageError: not of the form `torchvision:NAME` or `timm:NAME`, no such network (the nearest are named), or one
            of another kind than can be built by name.
        EnvironmentProblem: its library is not installed.
    """
    source, _, name = spec.partition(":")
    if not is_network(spec):
        forms = " or ".join(f"{known}:NAME" for known in SOURCES)
        said = shortened(repr(spec), LONGEST_WORD)
        raise UsageError(f"a network must be named as {forms}, such as {EXAMPLE}, got {said}")
    library = _library(source)
    if name not in (known := library.names()):
        if kind := library.left_out(name):
            raise UsageError(f"{spec} is {kind}: write a workload that builds it, as --workload ./file.py:factory")
        said = shortened(repr(spec), LONGEST_WORD)
        near = difflib.get_close_matches(name[:LONGEST_WORD], sorted(known), NEAREST, cutoff=0.0)
        offered = ", ".join(f"{source}:{one}" for one in near)
        raise UsageError(f"unknown network {said}: the nearest of {len(known)} are {offered}")
    return library, name


def is_ordinary(spec: str) -> bool:
    """Whether a text names a network of torchvision's that everybody has, and that is not so large as to do harm."""
    from search.networks import torchvision_networks

    source, _, name = spec.partition(":")
    if source != torchvision_networks.SOURCE or name not in torchvision_networks.names():
        return False
    return torchvision_networks.published_parameters(name) <= LARGEST


def build_network(spec: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network of that name with fresh weights, for so many classes and images of (channels, height, width)."""
    library, name = find_network(spec)
    return library.build(name, classes, shape)


def _library(source: str) -> Library:
    if source == "timm":
        from search.networks import timm_networks  # an extra, which only its own networks need

        return timm_networks
    from search.networks import torchvision_networks

    return torchvision_networks
