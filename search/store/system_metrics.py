"""What the machine does while a study runs, as MLflow's system metrics: sampled here, written with the record."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

from search.errors import EnvironmentProblem, UsageError
from search.store.mlflow_store import silenced

if TYPE_CHECKING:  # importing MLflow takes seconds
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

PREFIX = "system/"
"""What MLflow's pages know system metrics by."""
INTERVAL, SAMPLES = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"
NODE = "MLFLOW_SYSTEM_METRICS_NODE_ID"
"""Variables of MLflow's own."""
LONGEST_NODE = 100
"""Characters of a node's name; MLflow takes 250 of a metric's."""
SECONDS = 10.0
"""Between samples, unless the environment says otherwise, as with MLflow."""
MOST = 1_000_000
"""The longest interval in seconds, and the most looks, that are accepted."""
LONGEST_STOP = 2.0
"""Seconds that a study that ends waits for a sample, which takes milliseconds."""
log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """What the machine did since the sample before.

    Attributes:
        number: from 0 on.
        time: UNIX time in seconds.
        values: by MLflow's names, finite.
    """

    number: int
    time: float
    values: Mapping[str, float]


class Rhythm(NamedTuple):
    """How often the machine is looked at, and of how many looks the mean is one sample."""

    seconds: float
    looks: int


def require_system_metrics() -> Rhythm:
    """What the environment asks for, once it is sure that the machine can be sampled.

    Raises:
        EnvironmentProblem: the extra `system-metrics` is not installed.
        UsageError: a variable of MLflow's is no number above 0, or above `MOST`.
    """
    try:
        import psutil  # noqa: F401 - MLflow reads the machine by it
    except ImportError as error:
        raise EnvironmentProblem(
            f"--system-metrics needs the package {error.name!r}: pip install 'prunefront[system-metrics]', or leave it "
            "out (system-metrics = false)"
        ) from None
    return Rhythm(_number(INTERVAL, SECONDS), int(_number(SAMPLES, 1, whole=True)))


def _number(variable: str, default: float, whole: bool = False) -> float:
    given = os.environ.get(variable) or str(default)
    try:
        number = int(given) if whole else float(given)
    except ValueError:
        number = math.nan
    if not 0 < number <= MOST:
        kind = "a whole number" if whole else "seconds"
        raise UsageError(
            f"{variable} must be {kind}, > 0 and <= {MOST}, got {given!r}: correct it, or unset it for {default:g}"
        )
    return number


@contextmanager
def sampled_machine(told: Callable[[Sample], None]) -> Iterator[None]:
    """Sample the machine in a thread of its own, which ends with the block, after a last sample.

    A part of the machine that cannot be read is left out, with a warning; nothing here raises, but for what
    `require_system_metrics` does.

    Args:
        told: is called by that thread, and takes no time.
    """
    rhythm, end = require_system_metrics(), Event()
    thread = Thread(target=_sample, args=(rhythm, end, told), daemon=True, name="prunefront-system-metrics")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(LONGEST_STOP)


@silenced()
def _sample(rhythm: Rhythm, end: Event, told: Callable[[Sample], None]) -> None:
    node = re.sub(r"[^\w-]", "_", os.environ.get(NODE, "")[:LONGEST_NODE], flags=re.ASCII)  # what MLflow takes
    prefix = f"{PREFIX}{node}/" if node else PREFIX
    monitors = _monitors()
    _look(monitors)
    for monitor in monitors:
        monitor.clear_metrics()  # a processor's use is known from the second look on
    number = looks = 0
    ended = False
    while not ended:
        ended = end.wait(rhythm.seconds)
        _look(monitors)
        looks += 1
        if looks < rhythm.looks and not ended:
            continue
        looks, values = 0, dict[str, float]()
        for monitor in monitors:
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        finite = {f"{prefix}{name}": float(value) for name, value in values.items() if math.isfinite(value)}
        told(Sample(number, time.time(), finite))
        number += 1


def _monitors() -> list[BaseMetricsMonitor]:
    """MLflow's own, of what this machine has; that of a card raises where there is none, or no package for it."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[BaseMetricsMonitor] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
        except Exception as error:
            if kind not in (GPUMonitor, ROCMMonitor):
                _leave_out(kind, error)
    return found


def _look(monitors: list[BaseMetricsMonitor]) -> None:
    """Take a look by each monitor; those that fail are taken out of the list."""
    for monitor in [*monitors]:
        try:
            monitor.collect_metrics()
        except Exception as error:
            monitors.remove(monitor)
            _leave_out(type(monitor), error)


def _leave_out(kind: type[BaseMetricsMonitor], error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    log.warning("MLflow's system metrics go on without those of its %s (%s)", kind.__name__, reason)
