"""Everything with side effects: data, training, Optuna, MLflow, results, the command line.

Names are imported on first use, so that `prunefront --help` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:  # a signal while this is imported cannot be told of, and `typing` takes long
    from typing import Any

    from search.config import SearchConfig
    from search.metric import Metric
    from search.progress import ProgressReporter, TerminalReporter
    from search.results.view import load_front
    from search.study.result import SearchResult
    from search.study.start import run_finals, run_search
    from search.workloads import Workload, get_workload
    from search.workloads.recipe import Recipe
    from search.workloads.run import Run

_PLACES = {
    "Metric": "search.metric",
    "ProgressReporter": "search.progress",
    "Recipe": "search.workloads.recipe",
    "Run": "search.workloads.run",
    "SearchConfig": "search.config",
    "SearchResult": "search.study.result",
    "TerminalReporter": "search.progress",
    "Workload": "search.workloads",
    "get_workload": "search.workloads",
    "load_front": "search.results.view",
    "run_finals": "search.study.start",
    "run_search": "search.study.start",
}
__all__ = [
    "Metric", "ProgressReporter", "Recipe", "Run", "SearchConfig", "SearchResult", "TerminalReporter", "Workload",
    "get_workload", "load_front", "run_finals", "run_search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from search.namesakes import refuse_namesakes

    refuse_namesakes("spaces", "pruning")
    with warnings.catch_warnings():
        # a notebook without ipywidgets; of tqdm, which Optuna imports and of which nothing is shown here
        warnings.filterwarnings("ignore", "IProgress not found")
        return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
