"""Loading the user's own code: only ever what the user's command line or config names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import linecache
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pruning.importance.own_criteria import own_function, register_criterion
from search.errors import EnvironmentProblem, PrunefrontError, UsageError
from search.process.interrupts import check, is_signal
from search.user_code.blame import place, told
from spaces.criteria import check_criterion
from spaces.validation import unknown

_being_run: list[str] = []
"""Names of the user's files that are being run now, one by the other."""
OURS = ("spaces", "pruning", "search")
"""Our packages; their modules come before any the user has of the same name."""


def named_criterion(spec: str) -> str:
    """The criterion that a name stands for: built in, registered, or `./file.py:function`, whose file is run.

    The function becomes the criterion `file.py:function`. With one parameter it is given a weight, with two a model and
    calibration data, see `pruning.register_criterion`. If it has an attribute `granularities`, it is defined for those
    only.

    Raises:
        UsageError: an unknown name, no such file or function, or a function with other parameters.
    """
    place, _, name = spec.rpartition(":")
    try:
        if not place.endswith(".py"):
            word = check_criterion(spec)
            own_function(word)
            return word
        function = load_function("criterion", "function", spec, "")
        word = f"{Path(place).name}:{name}"
        register_criterion(word, function, getattr(function, "granularities", None), _takes_data(function, spec))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return word


def criterion_place(criterion: str) -> str | None:
    """The `/folder/file.py:function` from which this process took a criterion of the user's own; None for any other
    criterion.
    """
    file, _, name = criterion.rpartition(":")
    module = sys.modules.get(_module_name("criterion", Path(file)))
    if module is None or module.__file__ is None or Path(module.__file__).name != file:
        return None
    return f"{module.__file__}:{name}"


def _takes_data(function: Callable[..., Any], spec: str) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(needed) not in (1, 2):
        raise UsageError(
            f"criterion {spec!r} must take (weight) or (model, calibration), got {len(needed)} required parameters"
        )
    return len(needed) == 2


def load_function(what: str, part: str, spec: str, no_place: str) -> Callable[..., Any]:
    """The callable that `package.module:name` or `./file.py:name` stands for; its module is run.

    Args:
        what: the word for it in messages, such as `workload`.
        part: the word for what the module holds, such as `factory`.
        no_place: the message if `spec` names no place.

    Raises:
        UsageError: no such file, no callable of that name in it, or the file raises.
        EnvironmentProblem: the module cannot be imported.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(no_place)
    module = _module_of_file(what, Path(place)) if place.endswith(".py") else _imported(what, place)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            unknown(f"{part} in {place}", name, functions) + _namesake_in(Path.cwd(), module.__name__, name)
        )
    return found


def _imported(what: str, name: str) -> Any:
    if os.getcwd() not in sys.path:  # the command's own path holds no working directory
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ImportError as error:
        said = f"cannot import {what} module {name!r}: {error}"
        raise EnvironmentProblem(said + _namesake_in(Path.cwd(), *_missed(error))) from None
    except (Exception, SystemExit) as error:
        pass_signals_on(error)
        said = f"{what} module {name} raised {type(error).__name__}: {error}"
        raise UsageError(said + _namesake_in(Path.cwd(), *_missed(error))) from error


def _module_of_file(what: str, path: Path) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"no {what} file {str(path)!r}: check the path before the ':'")
    name = _module_name(what, path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and inspect.getsource find it
    if str(path.parent) not in sys.path:  # stays: a function may import its neighbours when it is called
        sys.path.append(str(path.parent))
    linecache.checkcache(str(path))
    _being_run.append(path.name)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        pass_signals_on(error)
        said = f"{what} file {path.name} raised {type(error).__name__}: {error}"
        raise UsageError(said + _namesake_in(path.parent, *_missed(error))) from error
    finally:
        _being_run.pop()
    return module


def refuse_while_loading(call: str) -> None:
    """Raise `UsageError` if a file is being run only for a function in it: what it calls itself is not meant."""
    if _being_run:
        raise UsageError(
            f"{_being_run[-1]} calls {call} whenever it is loaded, also for a function of it alone: put the call under "
            "`if __name__ == '__main__':`"
        )


def _missed(error: BaseException) -> tuple[str, str]:
    """Name of the module in which an import or a look-up found nothing, and what it looked for in it, if known."""
    if isinstance(error, ImportError):
        wanted = re.match(r"cannot import name '(\w+)'", str(error))
        return error.name or "", wanted[1] if wanted else ""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return error.obj.__name__, error.name or ""
    return "", ""


def _namesake_in(folder: Path, module: str, wanted: str) -> str:
    """What to add if a module of prunefront's lacks something that the user's own of the same name has."""
    name, _, inner = module.partition(".")
    if name not in OURS:
        return ""
    ours = Path(importlib.import_module(name).__path__[0]).resolve()
    for own in (folder / f"{name}.py", folder / name):
        if own.resolve() != ours and _holds(own, inner, wanted):
            return f"; prunefront's package {name!r} hides {str(own)!r}: rename that"
    return ""


def _holds(own: Path, inner: str, wanted: str) -> bool:
    """Whether a file, or a package in a folder, has a module or something else of this name, judged by its text."""
    word = wanted or inner.partition(".")[0]
    if not own.suffix and any((own / f"{word}{end}").exists() for end in (".py", "/__init__.py")):
        return True
    text = own if own.suffix else own / "__init__.py"
    return text.is_file() and word in text.read_text(errors="replace")


def _module_name(what: str, path: Path) -> str:
    return f"prunefront_{what}_{path.stem}"


def pass_signals_on(error: BaseException) -> None:
    """Raise an exception again if a signal caused it; a `sys.exit` and the like in the user's code is an error of that
    code.
    """
    if not isinstance(error, Exception) and is_signal(error):
        raise error
    check()


def call_user(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's function; whatever it raises, even `sys.exit`, becomes one `UsageError` that begins with `what`.

    Only interruptions and prunefront's own errors come out unchanged.
    """
    try:
        return function(*arguments)
    except PrunefrontError:
        raise
    except BaseException as error:
        pass_signals_on(error)
        raise UsageError(f"{what} raised {told(error)}") from error


def blame(error: BaseException, workload: str, doing: str) -> NoReturn:
    """Turn an exception raised by the user's own code into one line about that code; raise any other unchanged."""
    pass_signals_on(error)
    if isinstance(error, Exception) and (isinstance(error, PrunefrontError) or place(error) is None):
        raise error
    raise UsageError(f"workload {workload!r}: {doing} failed with {told(error)}") from error
