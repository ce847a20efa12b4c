"""What a command answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What goes to stdout, as data for `--json` and as text, the exit code, and what happens after that.

    Attributes:
        is_data: whether the text, too, is for programs or to be copied, so that no line of it is broken on a terminal.
    """

    data: Mapping[str, Any]
    text: str
    code: int = 0
    then: Callable[[], None] | None = None
    is_data: bool = False


def written_line(paths: Sequence[str]) -> str:
    """The files of one folder, or of several; the one that a command runs in has no name.

    >>> written_line(["front.png"])
    'Written: front.png'
    >>> written_line(["out/a.png", "out/b.png"])
    'Written to out: a.png, b.png'
    """
    by_folder: dict[str, list[str]] = {}
    for path in map(Path, paths):
        by_folder.setdefault(str(path.parent), []).append(path.name)
    return "\n".join(
        f"Written{'' if folder == '.' else f' to {folder}'}: {', '.join(names)}" for folder, names in by_folder.items()
    )
