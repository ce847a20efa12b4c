"""Options that several commands read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from search.config import SearchConfig, make_config
from search.errors import UsageError
from search.files import open_root
from search.workloads import Workload, get_workload
from spaces.validation import check_sparsity

WORKLOAD_OPTIONS = ("workload", "data", "weights", "width")


def workload_of(arguments: argparse.Namespace, **more: Any) -> tuple[SearchConfig, Path, Workload]:
    """Config, root and workload of a command that runs outside a study."""
    options = {key: getattr(arguments, key, None) for key in WORKLOAD_OPTIONS} | more
    config = make_config(root=arguments.root, **{k: v for k, v in options.items() if v is not None})
    root = open_root(config.root)
    workload = get_workload(config.workload, data=config.data, width=config.width, cache=str(root / "cache"))
    return config, root, workload


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
