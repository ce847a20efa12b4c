"""Finals timed by the user's own command, on a device of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from search.errors import GoalMissed
from search.export.latency_command import CommandFailed, time_by, written
from search.progress import ProgressReporter
from search.training.evaluate import PreparedModel
from search.training.latency_cache import Unmeasured
from spaces.cost.timing import TimedNetworks
from spaces.policy import PruningPolicy


def timed_by_command(
    command: str,
    subject: PreparedModel,
    networks: Mapping[str, nn.Module],
    policies: Mapping[str, PruningPolicy],
    watcher: ProgressReporter,
) -> TimedNetworks:
    """Time fine-tuned networks, by policy digest, beside the dense model and a copy of it: the ONNX files of exports.

    A network that cannot be written, or that the command fails on, is told and left out.

    Raises:
        Unmeasured: that is the dense model.
    """
    example, files = subject.workload.example_input, dict[str, Path]()

    def leave_out(digest: str, reason: str) -> None:
        watcher.note(f"the network of policy {digest} is compared without latency: {reason}")

    with ExitStack() as kept, watcher.stage("latency of the finals") as progress:
        try:
            dense = kept.enter_context(written(subject.dense, None, example))
            for digest, network in networks.items():
                try:
                    files[digest] = kept.enter_context(written(network, policies[digest], example))
                except GoalMissed as missed:
                    leave_out(digest, str(missed))
            return time_by(command, dense, files, progress, leave_out)
        except (CommandFailed, GoalMissed) as failed:
            raise Unmeasured(f"--latency-command {command!r}: {failed}") from None
