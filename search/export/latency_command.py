"""Networks timed by a command of the user's own, on a device that this program does not run on."""

from __future__ import annotations

import math
import os
import random
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import IO

from torch import nn

from pruning.copying import copy_model
from pruning.file.stored_form import to_stored_form_
from pruning.trees import NetworkInputs
from search.errors import GoalMissed
from search.export.onnx_file import write_onnx
from search.given_command import FILE
from spaces.cost.timing import TimedNetworks, timed_network
from spaces.policy import PruningPolicy
from spaces.printable import LONGEST_WORD, printable, shortened

CALL_SECONDS = 300.0
"""After which a call of the command is ended: its device hangs."""
LOOK_SECONDS = 1.0
"""Between two looks at how much the command has printed."""
MOST_OUTPUT, TAIL = 2**26, 2**16
"""Bytes that it may print, and of these the last that are read."""
ROUNDS, LEAST_ROUNDS = 30, 10
ROUNDS_SECONDS = 300.0
"""No round begins later, once there are the least."""
DENSE, COPY = "dense", "copy"


class CommandFailed(ValueError):
    """The command gave no seconds; says why, in a line."""


def seconds_by(command: str, file: Path, limit: float = CALL_SECONDS) -> float:
    """Seconds of one forward pass of the network in `file`, as the command says it in the last line of its output.

    No shell takes part, and the command reads nothing from this program's input. It has a process group of its own,
    which ends with it.

    Args:
        command: as a shell would have it, with `{file}` for the file.
        limit: seconds that it may take.

    Raises:
        CommandFailed: it cannot be run, takes too long, prints more than `MOST_OUTPUT`, ends with another code than 0,
            or says no number above 0.
    """
    words = [word.replace(FILE, str(file)) for word in shlex.split(command)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = Popen(words, stdin=DEVNULL, stdout=output, stderr=errors, start_new_session=True)
        except (OSError, ValueError) as error:  # words that no system takes are a `ValueError`
            raise CommandFailed(f"it cannot be run: {getattr(error, 'strerror', error)}") from None
        try:
            _wait(process, (output, errors), limit)
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what it started may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code:
            ended = f"it ended with code {code}" if code > 0 else f"it was ended by signal {-code}"
            raise CommandFailed(f"{ended}: {_last_line(errors) or 'no error was printed'}")
        return _seconds_in(_last_line(output))


def _wait(process: Popen[bytes], files: Sequence[IO[bytes]], limit: float) -> None:
    """Until the command ends; raises `CommandFailed` where it takes too long or prints too much."""
    ends = time.monotonic() + limit
    while True:
        with suppress(TimeoutExpired):
            process.wait(min(LOOK_SECONDS, max(ends - time.monotonic(), 0)))
            return
        if time.monotonic() >= ends:
            raise CommandFailed(f"it took longer than {limit:g} s")
        if any(os.fstat(file.fileno()).st_size > MOST_OUTPUT for file in files):
            raise CommandFailed(f"it printed more than {MOST_OUTPUT // 2**20} MiB")


def _last_line(file: IO[bytes]) -> str:
    """The last line of a file that is not blank, as far as it is in the file's last `TAIL` bytes."""
    file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return shortened(printable(lines[-1]), 4 * LONGEST_WORD) if lines else ""


def _seconds_in(line: str) -> float:
    try:
        seconds = math.nan if "_" in line else float(line)  # Python takes 0_1 for 1
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise CommandFailed(
            f"the last line of its output must be seconds, a number above 0 such as 0.0042, got {line!r}"
        )
    return seconds


def time_by(
    command: str,
    dense: Path,
    files: Mapping[str, Path],
    progress: Callable[[int, int], None] | None = None,
    left_out: Callable[[str, str], None] = lambda name, reason: None,
    clock: Callable[[], float] = time.monotonic,
) -> TimedNetworks:
    """Time files of networks side by side with the dense one's and a copy of it, in shuffled rounds.

    A round has one call of the command for each file, in a new random order. There are up to `ROUNDS`: after
    `ROUNDS_SECONDS` no more are begun than the least.

    Args:
        files: by the network's name.
        progress: called with (rounds done, total rounds).
        left_out: called with the name and the reason of a network that the command fails on, which is timed no more.

    Raises:
        CommandFailed: it fails on the dense network.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"copy{dense.suffix}")
        shutil.copyfile(dense, copy)
        places = {DENSE: dense, COPY: copy} | {f"network {name}": path for name, path in files.items()}
        taken: dict[str, list[float]] = {name: [] for name in places}
        order, ends = random.Random(0), clock() + ROUNDS_SECONDS
        for number in range(ROUNDS):
            for name in order.sample(sorted(taken), len(taken)):
                try:
                    taken[name].append(seconds_by(command, places[name]))
                except CommandFailed as failed:
                    if name in (DENSE, COPY):
                        raise CommandFailed(f"{failed}, on the dense network") from None
                    del taken[name]
                    left_out(name.removeprefix("network "), str(failed))
            is_last = number + 1 >= LEAST_ROUNDS and clock() >= ends
            if progress:
                progress(ROUNDS if is_last else number + 1, ROUNDS)
            if is_last:
                break
    first, again, *others = (timed_network(seconds, taken[DENSE]) for seconds in taken.values())
    names = [name.removeprefix("network ") for name in list(taken)[2:]]
    networks = dict(zip(names, others, strict=True))
    return TimedNetworks("", 1, 1, len(taken[DENSE]), first, again, networks, command=command)


@contextmanager
def written(model: nn.Module, policy: PruningPolicy | None, example_input: NetworkInputs) -> Iterator[Path]:
    """The file that an export of the network has as its `model.onnx`, for as long as the context lasts.

    Raises:
        EnvironmentProblem: the extra `onnx` is not installed.
        GoalMissed: the network cannot be written as ONNX.
    """
    model = copy_model(model).cpu().eval()
    rounded = to_stored_form_(model, policy.bits) if policy is not None and policy.is_rounded else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(model, example_input.detach().to("cpu"), path, rounded)
        yield path


def check_command(command: str, model: nn.Module, example_input: NetworkInputs) -> float:
    """Run the command once on a network; returns the seconds that it says.

    Raises:
        EnvironmentProblem: the extra `onnx` is not installed.
        CommandFailed: the network cannot be written as ONNX, or the command gives no seconds.
    """
    try:
        with written(model, None, example_input) as path:
            return seconds_by(command, path)
    except GoalMissed as missed:
        raise CommandFailed(str(missed)) from None
