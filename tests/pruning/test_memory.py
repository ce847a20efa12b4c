"""A lack of memory is told from other failures, however it is worded and wherever it comes about."""

from __future__ import annotations

import errno

import pytest
import torch

from pruning.channels.removal import output_difference
from pruning.memory import out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def raised(inner: BaseException, outer: BaseException, told: bool = True) -> BaseException:
    try:
        try:
            raise inner
        except BaseException as error:
            raise outer from (error if told else None)
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(f"{CPU} 8796093022208 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.11 GB)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        raised(MemoryError(), ValueError("the model does not run on the example input")),
        raised(RuntimeError(CPU), KeyError("cleaning up failed too")),
    ],
    ids=repr,
)
def test_memory_that_did_not_suffice(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("shape '[2]' is invalid for input of size 3"),
        OSError(errno.ENOSPC, "No space left on device"),
        raised(MemoryError(), ValueError("handled"), told=False),
    ],
    ids=repr,
)
def test_other_failures(error):
    assert not out_of_memory(error)


def test_pytorchs_own_allocator_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**45, dtype=torch.float64)  # 256 TiB
    assert out_of_memory(caught.value)


class Hungry(torch.nn.Module):
    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.linear, self.error = torch.nn.Linear(3, 2), error

    def forward(self, inputs):
        if self.error:
            raise self.error
        return self.linear(inputs)


def test_a_check_of_a_removal_that_lacks_memory_says_nothing_about_the_removal():
    example = torch.ones(2, 3)
    for error in (MemoryError(), RuntimeError(CPU)):
        with pytest.raises(type(error)):
            output_difference(Hungry(None), Hungry(error), example)
    assert "does not run, KeyError" in output_difference(Hungry(None), Hungry(KeyError("a")), example)
