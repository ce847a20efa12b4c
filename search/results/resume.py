"""The command line that goes on with a study."""

from __future__ import annotations

import shlex

from search.config import SearchConfig
from search.options import FACTORY_OPTIONS


def resume_command(config: SearchConfig, place: str | None = None) -> str:
    """The command line that resumes a study; its other settings are stored with it.

    A criterion of the user's own is named again, as its code is not stored: by its `place`,
    `/folder/file.py:function`, or where that is unknown by its name.
    """
    parts = ["prunefront", "search", "--workload", config.workload]
    for option in ("study", *FACTORY_OPTIONS):  # what finds the study, and what its workload is made from
        value = getattr(config, option)
        parts += [f"--{option}", str(value)] if value not in (None, False) else []
    if ":" in config.criterion:
        parts += ["--criterion", place or config.criterion]
    if config.root != "mlruns":
        parts += ["--root", config.root]
    return shlex.join(parts)
