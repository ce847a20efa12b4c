"""Evaluations that have begun: how far each came, and what is known of those that ended the process.

A process that is killed cannot say why, so notes are taken while it lives: the next step before each step, and the
cause when native code crashes or code calls `os._exit`. Being killed from outside does not fail a trial. What counts
against it are deaths known to be its own doing, and very many deaths at the same step, as from a lack of memory.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from search.files import read_bytes, read_text, write_durably
from search.process import interrupts
from search.user_code.blame import is_own

MAX_STARTS = 4
"""How often an evaluation may begin if, as far as is known, it ends the process itself each time."""
MAX_KILLS = 12
"""How often the process may be killed at the same step of an evaluation for a reason nobody knows."""
TIMED_OUT = "timed-out"
MOST_BYTES = 2**20
_STEP_BYTES = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Death:
    """An earlier attempt that ended its process after `step` of `steps` training steps; `how` is empty if the cause is
    unknown. `lost` is whether the process was a worker, and its study lived on.
    """

    step: int
    steps: int
    how: str
    lost: bool = False

    def __str__(self) -> str:
        return f"{reached(self.step, self.steps)}: {self.how or 'killed from outside, or for lack of memory'}"


def reached(step: int, steps: int) -> str:
    """How far an evaluation came, in words."""
    return f"after step {step} of {steps}" if steps else "before its first step was done"


class Attempt:
    """One evaluation. Its earlier attempts are read from files beside the journal, which `finish` removes.

    Args:
        folder: the journal's.
        key: names the evaluation.
        most_lost: how often workers may be lost in it; None: it knows none.

    Attributes:
        deaths: the attempts that ended the process, oldest first.
    """

    def __init__(self, folder: Path, key: str, most_lost: int | None = None) -> None:
        self._most_lost = most_lost
        self._known, self._now = folder / f"begun-{key}", folder / f"begun-{key}.now"
        self.deaths = _known_deaths(self._known) + _last_death(self._now)

    @property
    def failure(self) -> str | None:
        """Why the evaluation may not begin again; None if it may."""
        own = [death for death in self.deaths if death.how]
        if own and own[-1].how.startswith(TIMED_OUT):
            return f"{own[-1].how}, {reached(own[-1].step, own[-1].steps)}"
        if len(own) >= MAX_STARTS:
            return f"crashed: it ended the process {len(own)} times, last {own[-1]}"
        lost = [death for death in self.deaths if death.lost]
        if self._most_lost is not None and len(lost) >= self._most_lost:
            return f"crashed: its worker was lost, try {len(lost)} of {self._most_lost}, {lost[-1]}"
        kills = Counter((death.step, death.steps) for death in self.deaths if not death.how)
        if kills and (most := kills.most_common(1)[0])[1] >= MAX_KILLS:
            return f"crashed: the process was ended {most[1]} times in it, each time {Death(*most[0], '')}"
        return None

    @contextmanager
    def running(self, progress: Progress | None = None) -> Iterator[Progress]:
        """A context for the time in which the evaluation runs; the yielded function takes the step and the number of
        steps, and calls `progress`.

        An exception that leaves the context leaves the process alive, so it is no death.
        """
        self._write_deaths()
        process = os.getpid()
        self._now.unlink(missing_ok=True)  # never followed: it may be a link to another file
        file = os.open(self._now, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_step(file, 0, 0)
            os.lseek(file, _STEP_BYTES, os.SEEK_SET)

            def step(done: int, total: int) -> None:
                _write_step(file, done, total)
                if progress is not None:
                    progress(done, total)

            with _last_words(file):
                yield step
        finally:
            if os.getpid() != process:  # the user's code forked and its child came back here: one study is enough
                os._exit(1)
            os.close(file)
            self._now.unlink(missing_ok=True)

    def say(self, words: str) -> None:
        """Record what is about to end the process."""
        with self._now.open("ab") as file:
            file.write(words.encode())

    def lose(self, step: int, steps: int, how: str = "") -> None:
        """Record that the worker of this evaluation is gone: where it left no words, it was at this step, and what is
        known of its end, if anything, is `how`.
        """
        if not self._now.exists():
            self.deaths += (Death(step, steps, ""),)
        *before, last = self.deaths
        self.deaths = (*before, replace(last, how=last.how or how, lost=True))
        self._write_deaths()
        self._now.unlink(missing_ok=True)

    def forget_last(self) -> None:
        """The attempt that was running was ended by its study, and counts as not begun."""
        self._now.unlink(missing_ok=True)

    def _write_deaths(self) -> None:
        if self.deaths:
            text = json.dumps([{k: v for k, v in asdict(death).items() if v is not False} for death in self.deaths])
            write_durably(self._known, text.encode())

    def finish(self) -> None:
        """Forget the attempts, since the result is on disk."""
        self._known.unlink(missing_ok=True)
        self._now.unlink(missing_ok=True)


def give_up_on(attempt: Attempt, name: str, seconds: float | None) -> Callable[[], None] | None:
    """A function that ends the command if its evaluation stays in native code beyond the limit; None inside a user's
    program.
    """
    if seconds is None or not interrupts.can_end_process():
        return None

    def give_up() -> None:
        attempt.say(f"{TIMED_OUT}: longer than {seconds:g} s, in native code")
        interrupts.end_process(
            f"{name} takes longer than its limit of {seconds:g} s in native code, which cannot be interrupted: "
            "the same command records it as failed and goes on",
            3,
        )

    return give_up


def _write_step(file: int, done: int, total: int) -> None:
    with suppress(OSError):  # the step is worth nothing if nobody dies
        os.pwrite(file, f"{done} {total}".ljust(_STEP_BYTES - 1).encode() + b"\n", 0)


@contextmanager
def _last_words(file: int) -> Iterator[None]:
    """If native code crashes or anybody's code calls `os._exit`, record what happened."""
    before, leave, process = faulthandler.is_enabled(), os._exit, os.getpid()

    def said_and_left(status: int) -> NoReturn:
        unsaid = os.fstat(file).st_size <= _STEP_BYTES
        if os.getpid() == process and unsaid and interrupts.exit_code() is None:
            os.write(file, f"os._exit({status})\n".encode())
            faulthandler.dump_traceback(file, all_threads=False)
            if interrupts.can_end_process():
                interrupts.end_process(
                    f"the workload's own code ended the program by os._exit({status}): the same command begins that "
                    f"evaluation again, and records it as failed when it has ended so {MAX_STARTS} times",
                    3,
                )
        leave(status)

    faulthandler.enable(file, all_threads=False)
    os._exit = said_and_left
    try:
        yield
    finally:
        os._exit = leave
        faulthandler.disable()
        if before and sys.__stderr__ is not None:
            with suppress(ValueError, AttributeError, OSError, RuntimeError):  # a stderr that is no file
                faulthandler.enable(sys.__stderr__)


def _known_deaths(path: Path) -> tuple[Death, ...]:
    """The recorded deaths. Records that cannot be read count as none; the evaluation then begins once more than it
    should.
    """
    try:
        read: Any = json.loads(read_text(path, MOST_BYTES))
        return tuple(
            Death(int(one["step"]), int(one["steps"]), str(one["how"]), one.get("lost") is True) for one in read
        )
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return ()


def _last_death(path: Path) -> tuple[Death, ...]:
    try:
        text = read_bytes(path, MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ()
    numbers = re.match(r"(\d{1,15}) (\d{1,15}) *\n", text)
    done, total = (int(number) for number in numbers.groups()) if numbers else (0, 0)
    return (Death(done, total, _how(text[_STEP_BYTES:])),)


def _how(words: str) -> str:
    """`Segmentation fault (net.py, line 12)`, from the output of Python's fault handler; likewise for `os._exit`."""
    lines = [line for line in words.splitlines() if line.strip("\0 ")]
    if not lines:
        return ""
    what = lines[0].removeprefix("Fatal Python error: ")[:200]
    frames = re.findall(r'^  File "(.+)", line (\d+) in ', words, re.MULTILINE)
    own = next(((Path(file).name, line) for file, line in frames if is_own(file)), None)
    return f"{what} ({own[0]}, line {own[1]})" if own else what
