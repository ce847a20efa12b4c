"""The entry of the command line: next to nothing is imported before a signal would end a command in one line."""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `typing` has of that name takes 8 ms to import
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 goal missed, 2 usage, 3 environment, 4 refused)."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    from search.cli.answer import answer  # takes a tenth of a second: a signal waits until all is there to tell of it

    return answer(sys.argv[1:] if argv is None else argv, mask)


if __name__ == "__main__":
    sys.exit(main())
