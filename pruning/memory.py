"""Tells a lack of memory from every other failure."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

MARKS = (
    "DefaultCPUAllocator", "enforce fail at alloc_cpu", "not enough memory", "out of memory", "can't allocate memory",
    "Cannot allocate memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED",
)  # fmt: skip
"""What PyTorch's allocators and the libraries below it write into a plain `RuntimeError`."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, reports too little memory."""
    return any(_says_so(one) for one in _chain(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on; each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
