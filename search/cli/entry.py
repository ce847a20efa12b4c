"""The entry of the command line: next to nothing is imported before a signal would end a command in one line."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `typing` has of that name takes 8 ms to import
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 goal missed, 2 usage, 3 environment, 4 refused)."""
    _lead_closed_streams_nowhere()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    from search.cli.answer import answer  # takes a tenth of a second: a signal waits until all is there to tell of it

    return answer(sys.argv[1:] if argv is None else argv, mask)


def _lead_closed_streams_nowhere() -> None:
    """Whoever starts a command may have closed some (`2>&-`); no other file may come to be opened in their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


if __name__ == "__main__":
    sys.exit(main())
