"""One command from its words to its end: it runs, and every error ends it in one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TextIO

from search.cli.commands.reply import Reply
from search.cli.logged import logged_on_stderr
from search.cli.parser import Answered, WrongUsage, make_parser
from search.cli.screen import SCREEN, shown
from search.errors import EnvironmentProblem, PrunefrontError
from search.masking import masked
from search.namesakes import refuse_namesakes
from search.process import interrupts
from search.process.kept_work import begin_anew, what_is_kept
from search.user_code.blame import told
from search.user_code.lasting import LastingStream, leave_threads_behind

COMMANDS = {
    "study": ("search", "finals", "front", "status", "report", "view"),
    "network": ("scan", "inspect"),
    "policy": ("export", "apply", "verify"),
    "doctor": ("doctor",),
    "completion": ("completion",),
}
"""File in `search.cli.commands` -> the commands it holds."""
SHORT = 1000
"""Characters of a message that is never cut."""


def answer(words: Sequence[str], mask: Collection[int]) -> int:
    """Run one command; returns its exit code.

    Args:
        mask: the signals that are to be held back, as `signal.pthread_sigmask` takes them, once others are watched for.
    """
    arguments = argparse.Namespace(json="--json" in words, debug=False)
    if words[:1] in (["search"], ["finals"]):
        arguments.resume = masked(shlex.join(["prunefront", *words]))
    begin_anew()
    interrupts.watch(lambda message, code: _say_at_once(message, code, arguments))
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # those that have come since raise here
        arguments = make_parser().parse_args(words, argparse.Namespace(**vars(arguments)))
        if arguments.root is None and arguments.command != "search":  # a STUDY.toml may name the root
            arguments.root = "mlruns"
        code = _run(arguments)
    except BaseException as error:
        code = _ended(error, arguments)
    interrupts.finish(code)
    leave_threads_behind(code)
    return code


def _ended(error: BaseException, arguments: argparse.Namespace) -> int:
    """Say in one line why a command ended; its exit code."""
    interrupts.settle()
    if code := interrupts.exit_code():  # whatever became of what the signal raised
        return _report(_of_signal(code) + _how_to_resume(arguments), code, arguments)
    match error:
        case Answered():
            return 0
        case WrongUsage():
            return _report(str(error), 2, arguments)
        case BrokenPipeError():
            _silence_stdout()
            return 0
        case PrunefrontError():
            return _report(str(error), error.exit_code, arguments)
        case OSError():
            where = f" ({error.filename!r})" if error.filename else ""
            return _report(f"{error.strerror or error}{where}: free space or choose another place", 3, arguments)
        case Exception():
            what = (str(error).splitlines() or [""])[0]
            said = f"unexpected {type(error).__name__}: {what}; run again with --debug to see where"
            return _report(said, 1, arguments)
        case KeyboardInterrupt() if interrupts.is_signal(error):
            return _report("interrupted" + _how_to_resume(arguments), interrupts.INTERRUPTED, arguments)
    said = f"your own code asked to end the program by {told(error)}: let it raise an error that says what is wrong"
    return _report(said, 2, arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        refuse_namesakes("spaces", "pruning")
    except ImportError as error:
        raise EnvironmentProblem(str(error)) from None
    with _everything_to_stderr(), logged_on_stderr():
        reply = _command_of(arguments.command)(arguments)
    text = json.dumps(reply.data, allow_nan=False, default=str) if arguments.json else reply.text
    is_data = arguments.json or reply.is_data
    arguments.json = False  # the one object is out, or it is said on stderr why there is none
    if text:
        _print_plain(text, is_data=is_data)
    if reply.then:
        with _everything_to_stderr():
            reply.then()
    return reply.code


def _command_of(name: str) -> Callable[[argparse.Namespace], Reply]:
    """Its function; what it needs is imported only now."""
    (place,) = (place for place, names in COMMANDS.items() if name in names)
    return getattr(importlib.import_module(f"search.cli.commands.{place}"), name)


@contextlib.contextmanager
def _everything_to_stderr() -> Iterator[None]:
    """Keep stdout for the reply: what user code, its child processes or a library print goes to stderr."""
    sys.stdout.flush()
    kept = SCREEN.descriptor = os.dup(1)
    os.dup2(2, 1)
    lasting = LastingStream(sys.stderr)
    try:
        with contextlib.redirect_stderr(lasting), contextlib.redirect_stdout(lasting):
            yield
    finally:
        os.dup2(kept, 1)
        SCREEN.descriptor = 1
        os.close(kept)


def _report(message: str, code: int, arguments: argparse.Namespace) -> int:
    if arguments.debug and code not in (interrupts.INTERRUPTED, interrupts.TERMINATED):
        _print_plain(masked(traceback.format_exc()), sys.stderr)
    line = _one_line(masked(message))
    _print_plain(f"prunefront: {line}", sys.stderr)
    if arguments.json:
        try:
            print(json.dumps({"error": line, "exit_code": code}), flush=True)
        except BrokenPipeError:
            _silence_stdout()
    return code


def _one_line(message: str) -> str:
    line = " ".join(message.splitlines())
    if line.isprintable() and len(line) < SHORT:
        return line
    from spaces.printable import printable, shortened  # spaces imports numpy, which most messages do not need

    return shortened(printable(line))


def _print_plain(text: str, file: TextIO | None = None, is_data: bool = False) -> None:
    """Print text in which names and messages may be anybody's: nothing in it steers the terminal.

    Args:
        is_data: it is for programs, so that no line of it is broken.
    """
    on_screen = file is None and SCREEN.columns is not None and not is_data
    if on_screen or not text.replace("\n", "").isprintable():
        text = shown(text, on_screen)
    file = sys.stdout if file is None else file
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def _silence_stdout() -> None:
    """The reader left: say nothing more, not even when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_at_once(message: str | None, code: int, arguments: argparse.Namespace) -> None:
    """What `_report` says, by system calls alone: nothing else of this process still runs."""
    line = (message or _of_signal(code)) + _how_to_resume(arguments)
    os.write(2, f"prunefront: {line}\n".encode())
    if arguments.json:
        os.write(SCREEN.descriptor, (json.dumps({"error": line, "exit_code": code}) + "\n").encode())


def _of_signal(code: int) -> str:
    return "interrupted" if code == interrupts.INTERRUPTED else "terminated"


def _how_to_resume(arguments: argparse.Namespace) -> str:
    command, kept = getattr(arguments, "resume", None), what_is_kept()
    if command:
        return f"; {kept or 'finished trials are kept'}, resume with: {command}"
    return f"; {kept}: run the same command again" if kept else ""
