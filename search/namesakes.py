"""Files of the user's that have the name of one of prunefront's packages, and hide it.

`pruning` and `search` each hold this file: neither can ask the other for it, whose name may be the one that is hidden.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def refuse_namesakes(*packages: str) -> None:
    """Raise `ImportError`, in one line with the remedy, if `import` finds something else by one of these names."""
    for name in packages:
        found = _found(name)
        ours = os.path.join(os.path.realpath(_HOME), name, "__init__.")
        if found is None or os.path.realpath(found).startswith(ours):  # what is missing, Python tells
            continue
        own = os.path.dirname(found) if os.path.basename(found).startswith("__init__.") else found
        remedy = f"rename it, such as to my_{os.path.basename(own)}"
        if os.path.basename(os.path.dirname(own)) in ("site-packages", "dist-packages"):
            remedy = "it is another installed package: give prunefront an environment of its own"
        raise ImportError(f"{own} hides prunefront's package {name!r}: {remedy}", name=name, path=found)


def _found(name: str) -> str | None:
    """The file, or folder of a package without `__init__.py`, that `import name` finds; its code is not run."""
    if (module := sys.modules.get(name)) is not None:
        return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if (spec := find_spec(name)) is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)
