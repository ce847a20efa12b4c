"""Everything with side effects: data, training, Optuna, MLflow, results, the command line.

Names are imported on first use, so that `prunefront --help` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # a signal while this is imported cannot be told of, and `typing` takes long
    from typing import Any

_PLACES = {
    "Recipe": "search.workloads.recipe",
    "SearchConfig": "search.config",
    "SearchResult": "search.study.runner",
    "Workload": "search.workloads",
    "get_workload": "search.workloads",
    "load_front": "search.results.view",
    "run_search": "search.study.start",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
