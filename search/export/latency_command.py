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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

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
        CommandFailed: it cannot be run, takes too long, ends with another code than 0, or says no number above 0.
    """
    words = [word.replace(FILE, str(file)) for word in shlex.split(command)]
    try:
        with Popen(words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
            try:
                output, errors = (text.decode(errors="replace") for text in process.communicate(timeout=limit))
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    except TimeoutExpired:
        raise CommandFailed(f"it took longer than {limit:g} s") from None
    except OSError as error:
        raise CommandFailed(f"it cannot be run: {error.strerror}") from None
    if process.returncode:
        raise CommandFailed(f"it ended with code {process.returncode}: {_last_line(errors) or 'no error was printed'}")
    return _seconds_in(_last_line(output))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(printable(lines[-1]), 4 * LONGEST_WORD) if lines else ""


def _seconds_in(line: str) -> float:
    try:
        seconds = float(line)
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
