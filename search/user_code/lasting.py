"""Protects the program from two things the user's code may do: close its streams and leave threads running."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, TextIO

SECONDS_TO_END = 5.0
"""Seconds that leftover threads may take to end once the command is over."""


class LastingStream:
    """Another stream in every respect, except that it cannot be closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def close(self) -> None:
        """Leave the stream open, since more will be written to it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave_threads_behind(code: int) -> None:
    """Exit with `code` soon after the main thread is done, even if threads were started that never end.

    Python itself would wait for them forever. Without leftover threads this does nothing.
    """
    main = threading.main_thread()
    if not [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]:
        return

    def end() -> None:
        main.join()
        time.sleep(SECONDS_TO_END)
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()
