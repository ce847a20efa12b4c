"""Finding a workload by name: built in, `package.module:factory` or `./file.py:factory`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.modules import check_example
from pruning.trees import ModelInputs
from search.errors import PrunefrontError, UsageError
from search.metric import Metric
from search.options import BUILT_IN_WORKLOADS
from search.placement import CPU
from search.user_code.loading import load_function, pass_signals_on
from search.user_code.randomness import seeded
from search.workloads.base import Workload, placed
from search.workloads.examples import SEED
from search.workloads.metrics import accuracy
from search.workloads.recipe import Recipe
from search.workloads.splits import Split
from search.workloads.tally import is_metric
from spaces.validation import unknown

__all__ = ["Metric", "Split", "Workload", "accuracy", "get_workload", "is_built_in"]


def is_built_in(spec: str) -> bool:
    """Whether the name needs none of the user's code."""
    return spec in BUILT_IN_WORKLOADS


def get_workload(spec: str, **options: Any) -> Workload:
    """Build the workload that a specification names.

    The global random generators have a fixed seed while its code runs, so that splits it draws are the same each time.

    Args:
        spec: a name of `BUILT_IN_WORKLOADS`, `package.module:factory` or `./file.py:factory`. Only ever pass what the
            user wrote: the factory's code is imported and run.
        options: `data`, `width`, `cache`; those that are None are left out. `cache` is dropped if the factory does not
            take it.

    Raises:
        UsageError: unknown name, factory or option, or a factory that does not return a `Workload`.
        EnvironmentProblem: its module cannot be imported, or its data is missing.
    """
    if not isinstance(spec, str):
        raise UsageError(f"a workload must be named by a string such as 'digits' or './file.py:factory', got {spec!r}")
    with seeded(SEED):
        return _made(spec, _factory(BUILT_IN_WORKLOADS.get(spec, spec)), options)


def _made(spec: str, factory: Callable[..., Workload], options: dict[str, Any]) -> Workload:
    accepted = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    options = {key: value for key, value in options.items() if value is not None}
    if "cache" not in accepted:
        options.pop("cache", None)
    for key in options:
        if key not in accepted and not takes_any:
            raise UsageError(f"workload {spec!r} takes no --{key}: its factory has no parameter {key!r}")
    try:
        workload = factory(**options)
    except PrunefrontError:
        raise
    except ValueError as error:
        raise UsageError(f"workload {spec!r}: {error}") from None
    except (Exception, SystemExit) as error:
        pass_signals_on(error)
        raise UsageError(f"workload {spec!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(workload, Workload):
        raise UsageError(f"workload {spec!r}: its factory must return a search.Workload, got {type(workload).__name__}")
    _check_parts(spec, workload)
    return placed(workload, CPU)  # where it is used is for commands to say


def _check_parts(spec: str, workload: Workload) -> None:
    """Refuse parts that would otherwise fail only after something was trained."""
    for name in ("build_model", "loss", "metric", "augment"):
        part = getattr(workload, name)
        if name == "metric" and is_metric(part):
            continue
        if not callable(part) and not (name == "augment" and part is None):
            raise UsageError(f"workload {spec!r}: {name} must be a function, got {part!r}")
    for name, kind, word in (("recipe", Recipe, "search.Recipe"), ("example_input", (Tensor, ModelInputs), "tensor")):
        if not isinstance(part := getattr(workload, name), kind):
            raise UsageError(f"workload {spec!r}: {name} must be a {word}, got {type(part).__name__}")
    try:
        check_example(workload.example_input)
    except ValueError as error:
        raise UsageError(f"workload {spec!r}: {error}") from None
    if not isinstance(workload.weights, str | Path | None):
        raise UsageError(f"workload {spec!r}: weights must name a file, got {type(workload.weights).__name__}")


def _factory(spec: str) -> Callable[..., Workload]:
    forms = "'package.module:factory' or './file.py:factory'"
    return load_function(
        "workload", "factory", spec, f"{unknown('workload', spec, BUILT_IN_WORKLOADS)}; your own is {forms}"
    )
