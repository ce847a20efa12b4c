"""Finding a workload by name: built in, `package.module:factory` or `./file.py:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.errors import EnvironmentProblem, PrunefrontError, UsageError
from search.workloads.base import Split, Workload, accuracy
from spaces.errors import unknown

__all__ = ["BUILT_IN", "Split", "Workload", "accuracy", "get_workload", "is_built_in"]

BUILT_IN = {
    "digits": "search.workloads.digits:digits",
    "fashion-mnist": "search.workloads.fashion_mnist:fashion_mnist",
}


def is_built_in(spec: str) -> bool:
    """Whether the name needs no code of the user's."""
    return spec in BUILT_IN


def get_workload(spec: str, **options: Any) -> Workload:
    """Build the workload a specification names.

    Args:
        spec: `digits`, `fashion-mnist`, `package.module:factory` or `./file.py:factory`. Only ever pass
            what the user wrote: the factory's code is imported and run.
        options: `data`, `width`, `cache`; those that are None are left out. `cache` is dropped where the factory
            takes none.

    Raises:
        UsageError: unknown name, factory or option, or a factory that returns no `Workload`.
        EnvironmentProblem: its module cannot be imported, or its data is missing.
    """
    factory = _factory(BUILT_IN.get(spec, spec))
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
        _pass_signals_on(error)
        raise UsageError(f"workload {spec!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(workload, Workload):
        raise UsageError(f"workload {spec!r}: its factory must return a search.Workload, got {type(workload).__name__}")
    return workload


def _factory(spec: str) -> Callable[..., Workload]:
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        forms = "'package.module:factory' or './file.py:factory'"
        raise UsageError(f"{unknown('workload', spec, BUILT_IN)}; your own is {forms}")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _imported(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(unknown(f"factory in {place}", name, functions))
    return factory


def _imported(name: str) -> Any:
    if os.getcwd() not in sys.path:  # the command's own path holds no working directory
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(f"cannot import workload module {name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        _pass_signals_on(error)
        raise UsageError(f"workload module {name} raised {type(error).__name__}: {error}") from error


def _module_of_file(path: Path) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"no workload file {str(path)!r}: check the path before the ':'")
    name = f"prunefront_workload_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and inspect.getsource find it
    if str(path.parent) not in sys.path:  # stays: a factory may import its neighbours when it is called
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _pass_signals_on(error)
        raise UsageError(f"workload file {path.name} raised {type(error).__name__}: {error}") from error
    return module


def _pass_signals_on(error: BaseException) -> None:
    """`sys.exit` in a user's code is an error of that code; the command's own subclass of it, for SIGTERM, is not."""
    if isinstance(error, SystemExit) and type(error) is not SystemExit:
        raise error
