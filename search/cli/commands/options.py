"""Options that several commands read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.cli.parser import given_options
from search.config import SearchConfig, make_config
from search.errors import UsageError
from search.files import open_root
from search.networks.names import is_network
from search.options import PLACEMENT_OPTIONS, WORKLOAD_OPTIONS
from search.placement import Placement, placement_of
from search.workloads import Workload, get_workload
from search.workloads.choices import network_alone
from spaces.bits import check_bits
from spaces.validation import check_sparsity


def workload_of(arguments: argparse.Namespace, **more: Any) -> tuple[SearchConfig, Path, Workload]:
    """Config, root and workload of a command that runs outside a study."""
    config, root = _config_and_root(arguments, more)
    workload = get_workload(config.workload, **config.factory_options, cache=str(root / "cache"))
    return config, root, workload


def task_or_network(arguments: argparse.Namespace, **more: Any) -> tuple[SearchConfig, Path, Workload]:
    """The same of a command that takes a network of a library alone, without data."""
    if not is_network(arguments.workload or ""):
        return workload_of(arguments, **more)
    for name in ("data", "width", "network"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} has no effect on {arguments.workload}, a network alone: leave it out")
    config, root = _config_and_root(arguments, more)
    alone = network_alone(config.workload, config.pretrained, root / "cache", config.trust_remote_code)
    return config, root, alone


def _config_and_root(arguments: argparse.Namespace, more: Mapping[str, Any]) -> tuple[SearchConfig, Path]:
    options = given_options(arguments, (*WORKLOAD_OPTIONS, *PLACEMENT_OPTIONS)) | {
        k: v for k, v in more.items() if v is not None
    }
    config = make_config(root=arguments.root, **options)
    return config, open_root(config.root)


def placement_asked(config: SearchConfig) -> Placement:
    """Where a command's networks are trained, scanned and timed."""
    return placement_of(config.device, config.precision, config.deterministic, config.threads)


def bits_of(text: str) -> tuple[int, ...]:
    """Value bits of `--bits 8,6,4`."""
    try:
        return tuple(check_bits(int(word) if word.strip().isdecimal() else word, "--bits") for word in text.split(","))
    except ValueError as error:
        raise UsageError(str(error)) from None


def sparsities_of(text: str, option: str) -> tuple[float, ...]:
    """Rising sparsities of an option such as `0.5,0.75`, each above 0 and once."""
    try:
        values = sorted(check_sparsity(float(word), option) for word in text.split(","))
    except ValueError as error:
        said = str(error) if str(error).startswith(option) else f"{option} takes sparsities such as 0.5,0.75"
        raise UsageError(said if "got" in said else f"{said}, got {text!r}") from None
    if values[0] <= 0 or len(set(values)) < len(values):
        raise UsageError(f"{option} takes sparsities above 0, each once, such as 0.5,0.75, got {text!r}")
    return tuple(values)
