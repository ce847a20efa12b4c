"""The command lines that go on with a study, and that export of it."""

from __future__ import annotations

import shlex

from search.config import SearchConfig
from search.given_workload import lives_in_python
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


def export_command(config: SearchConfig, study: str, trial: str, out: str, root: str) -> str:
    """The command line that exports a trial; of a workload that was given in Python, with a place for what makes it.

    Args:
        trial: as `--trial` takes it.
        root: of the study, as it is named where the command is to be given.
    """
    words = ["prunefront", "export", study, "--trial", trial, "--out", out]
    words += ["--workload", "./file.py:function"] if lives_in_python(config.workload) else []
    words += ["--root", root] if root != "mlruns" else []
    return shlex.join(words)
