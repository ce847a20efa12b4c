"""Finding a workload by name: built in, `package.module:factory` or `./file.py:factory`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.modules import check_example
from pruning.trees import ModelInputs
from search.errors import PrunefrontError, UsageError
from search.given_workload import Given, lives_in_python
from search.metric import Metric
from search.networks.names import find_network, is_network, lacks_name
from search.options import BUILT_IN_WORKLOADS
from search.placement import CPU
from search.user_code.loading import load_function, pass_signals_on
from search.user_code.randomness import seeded
from search.workloads.base import Workload, placed
from search.workloads.choices import pretrained_file, with_network, with_pretrained
from search.workloads.examples import SEED
from search.workloads.metrics import accuracy
from search.workloads.recipe import Recipe
from search.workloads.splits import Split
from search.workloads.tally import is_metric
from spaces.printable import LONGEST_WORD, shortened
from spaces.validation import unknown

DEFAULT_CACHE = "mlruns/cache"
__all__ = ["Metric", "Split", "Workload", "accuracy", "get_workload", "is_built_in"]


def is_built_in(spec: str) -> bool:
    """Whether the name needs none of the user's code."""
    return spec in BUILT_IN_WORKLOADS


def get_workload(spec: str, *, factory: Callable[..., Any] | None = None, **options: Any) -> Workload:
    """Build the workload that a specification names.

    The global random generators have a fixed seed while its code runs, so that splits it draws are the same each time.

    Args:
        spec: a name of `BUILT_IN_WORKLOADS`, `package.module:factory` or `./file.py:factory`. Only ever pass what the
            user wrote: the factory's code is imported and run.
        factory: the function itself, where it is at hand: nothing is imported then, and `spec` is what it is called.
        options: `data`, `width`, `network`, `pretrained`, `trust_remote_code` and `cache`, as the command line has
            them; those that are None are left out. A factory that takes a `network` or `pretrained` is given it, and
            they are carried out here for any other. `cache` is dropped if the factory does not take it.

    Raises:
        UsageError: unknown name, factory, network or option, or a factory that does not return a `Workload`.
        EnvironmentProblem: its module cannot be imported, or its data or weights are missing.
        Refused: the code of a hub would have to run, and `trust_remote_code` does not say so.
    """
    if not isinstance(spec, str):
        raise UsageError(f"a workload must be named by a string such as 'digits' or './file.py:factory', got {spec!r}")
    if factory is None and lives_in_python(spec):
        raise UsageError(
            f"workload {spec!r} was given in Python, where no other program finds it: give it again by "
            "SearchConfig(workload=...) there, or name the function that makes it, by --workload ./file.py:function"
        )
    if lacks_name(spec):
        find_network(spec)  # which says how they are named
    if is_network(spec):
        raise UsageError(
            f"{shortened(repr(spec), LONGEST_WORD)} is a network without data, which only `inspect` takes: name a "
            f"--workload, such as {next(iter(BUILT_IN_WORKLOADS))}, and give it as --network"
        )
    cache, trusted = Path(options.get("cache") or DEFAULT_CACHE), bool(options.pop("trust_remote_code", False))
    with seeded(SEED):
        factory = factory or _factory(BUILT_IN_WORKLOADS.get(spec, spec))
        ours = {"network", "pretrained"} - inspect.signature(factory).parameters.keys()
        network, pretrained = (options.pop(key, None) if key in ours else None for key in ("network", "pretrained"))
        if network is not None:
            _check_network(spec, network, options)
        with seeded(SEED):
            begun = pretrained and pretrained_file(pretrained, spec, network, cache, trusted)
        workload = _made(spec, factory, options)
        if network is not None:
            workload = with_network(workload, network)
        return with_pretrained(workload, begun) if begun else workload


def _check_network(spec: str, network: str, options: Mapping[str, Any]) -> None:
    """Refuse, before data is read, a network that does not exist or that leaves another option without effect."""
    find_network(network)
    if options.get("width") is not None and is_built_in(spec):
        raise UsageError(f"width is of the network that {network} takes the place of: leave one of them out")


def _made(spec: str, factory: Callable[..., Workload], options: dict[str, Any]) -> Workload:
    accepted = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    options = {key: value for key, value in options.items() if value is not None}
    if "cache" not in accepted:
        options.pop("cache", None)
    for key in options:
        if key not in accepted and not takes_any:
            why = "it is made already" if isinstance(factory, Given) else f"its factory has no parameter {key!r}"
            raise UsageError(f"workload {spec!r} takes no --{key}: {why}")
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
        if name == "metric" and (is_metric(part) or (workload.evaluate is not None and isinstance(part, Metric))):
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
