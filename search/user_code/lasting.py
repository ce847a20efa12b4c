"""What code of the user's own may do to the program around it, and does not end or hang it: streams, threads."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, TextIO

SECONDS_TO_END = 5.0
"""What threads left behind may take to end once the command is over."""


class LastingStream:
    """A stream that is whatever another one is, but cannot be closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def close(self) -> None:
        """Leave it open: what follows has something to say, too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave_threads_behind(code: int) -> None:
    """Let the process end with `code` soon after its main thread, also if threads were started that never end.

    Python itself would wait for them for ever. Does nothing where there are none.
    """
    main = threading.main_thread()
    if not [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]:
        return

    def end() -> None:
        main.join()
        time.sleep(SECONDS_TO_END)
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()
