"""Latency of a workload's networks: the dense model's table, kept for later studies, and finals timed side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from pruning.channels.removal import one_line
from pruning.devices import device_of
from pruning.latency import (
    KERNEL_STEP,
    LEAST_SECONDS,
    LEVELS,
    REPEATS,
    TABLE_SECONDS,
    describe_device,
    measure_latency_table,
    time_networks,
)
from pruning.outputs import tensors_in
from pruning.trees import contents
from search.checksum import sealed, unsealed
from search.files import read_text, write_durably
from search.training.evaluate import PreparedModel
from search.training.fingerprint import digest
from search.training.train import in_fast_layout
from spaces.cost.latency_table import LatencyTable
from spaces.cost.timing import TimedNetworks
from spaces.printable import printable


class Unmeasured(ValueError):
    """Latency cannot be measured of this network or on this device; says why, in a line."""


log = logging.getLogger(__name__)
QUIET_SPREAD = 0.2
"""If the dense network's times spread more than this, the machine was busy and the table is in doubt."""


def cached_latency_table(
    subject: PreparedModel,
    architecture: str,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 1,
) -> LatencyTable:
    """The latency table of this architecture on this machine, from the cache or newly measured.

    A cached file that is damaged or belongs to another network is measured again, with a warning. A table that was
    measured on a busy machine warns too, each time.

    Args:
        architecture: the model's fingerprint; its weights play no part.
        progress: called with (rounds done, total rounds) while measuring.
        batch: examples in one forward pass.

    Raises:
        Unmeasured: it cannot be.
    """
    path = latency_path(subject, architecture, cache, batch)
    if (known := known_latency_table(subject, architecture, cache, batch)) is not None:
        _tell_doubt(known, path)
        return known
    example = subject.workload.example_input
    try:
        table = measure_latency_table(
            subject.dense, subject.graph, example, batch=batch, fingerprint=architecture, progress=progress
        )
    except Exception as error:  # code of the user's network, and any device's
        raise Unmeasured(one_line(error)) from error
    _tell_doubt(table, path)
    write_durably(path, sealed(table.to_json()).encode())
    return table


def _tell_doubt(table: LatencyTable, path: Path) -> None:
    """Warn of a table in doubt; the study that is given it goes on with a copy of its own."""
    if table.spread > QUIET_SPREAD:
        log.warning(
            "the machine was busy while latency was measured (spread %.0f %%): the study keeps this table; for another "
            "one, delete %s and begin a new --study while the machine is idle",
            100 * table.spread,
            path,
        )


def known_latency_table(subject: PreparedModel, architecture: str, cache: Path, batch: int = 1) -> LatencyTable | None:
    """The table that the cache holds, without measuring any; None if there is none, or, with a warning, if it is
    damaged or of another network."""
    path = latency_path(subject, architecture, cache, batch)
    if not path.is_file():
        return None
    try:
        table = LatencyTable.from_json(unsealed(read_text(path)))
        table.require(subject.network)
        return table
    except (ValueError, OSError) as error:
        log.warning("%s: %s", path.name, printable(error))
        return None


def latency_path(subject: PreparedModel, architecture: str, cache: Path, batch: int = 1) -> Path:
    """Where the table is kept, by the model's architecture, layout and input, the device, threads and PyTorch; on CUDA
    by its version and cuDNN's too.
    """
    tensors = subject.dense.state_dict().values()
    example = subject.workload.example_input
    device = device_of(subject.dense, example)
    key = digest(
        architecture,
        [(str(tensor.dtype), tensor.stride()) for tensor in tensors],
        [part for one in tensors_in(contents(example)) for part in (tuple(one.shape[1:]), str(one.dtype))],
        [describe_device(device), torch.get_num_threads(), torch.__version__],
        [batch, LEVELS, KERNEL_STEP, REPEATS, TABLE_SECONDS],
        *([torch.version.cuda, torch.backends.cudnn.version(), LEAST_SECONDS] if device.type == "cuda" else []),
    )
    return cache / f"latency-{key}.json"


def time_finals(
    subject: PreparedModel, networks: Mapping[str, nn.Module], progress: Callable[[int, int], None] | None = None
) -> TimedNetworks:
    """Time fine-tuned networks, one example at a time, side by side with the dense model and a copy of it.

    All run in the memory layout of fine-tunes; `networks` are moved into it. Warns of a busy machine.

    Raises:
        Unmeasured: one of them fails.
    """
    example = subject.workload.example_input
    moved = {name: in_fast_layout(network, example) for name, network in networks.items()}
    try:
        timed = time_networks(subject.dense, moved, example, progress=progress)
    except Exception as error:  # code of the user's network, and any device's
        raise Unmeasured(one_line(error)) from error
    if timed.dense.spread > QUIET_SPREAD:
        log.warning(
            "the machine was busy while finals were timed (spread %.0f %%): their latency is in doubt",
            100 * timed.dense.spread,
        )
    return timed
