"""A network that does not fit into memory, told with what would change that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pruning.memory import out_of_memory
from search.errors import EnvironmentProblem
from search.records import FLOAT32
from search.workloads.base import Workload


@contextmanager
def within_memory(workload: Workload, what: str) -> Iterator[None]:
    """Raise `EnvironmentProblem`, with the remedy, if what is done inside lacks memory."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        placement = workload.placement
        where = "this machine" if placement.on_cpu else f"{placement.device} ({placement.name})"
        smaller = f"give its recipe a batch smaller than {workload.recipe.batch}"
        half = [] if placement.on_cpu or placement.precision != FLOAT32 else ["--precision bf16"]
        other = "free memory" if placement.on_cpu else "another --device, such as cpu"
        remedies = ", or ".join([smaller, *half, other])
        raise EnvironmentProblem(
            f"workload {workload.name!r}: {what} does not fit into the memory of {where}: {remedies}"
        ) from error
