"""Where networks are trained, scanned, scored and timed, and in which precision: one value for all of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.devices import has_float64
from pruning.latency import describe_device
from pruning.outputs import map_tensors
from search.errors import EnvironmentProblem, UsageError
from search.records import FLOAT32

AUTO = "auto"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> the type in which a training's forward passes multiply."""
RESIDENT_SHARE = 0.2
"""Of the memory that is free on the device, at most so much is taken by a split that is kept there."""
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What NVIDIA's libraries ask of the environment, before their first product, to repeat products bit for bit."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What tells CUDA, before its first use, which cards a process sees."""

_resident: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""A tensor of a split -> device -> its copy there, or None where it did not fit; gone when the tensor is."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """A device, and how it computes. Parameters, masks, scores of units and scored passes are always float32.

    Attributes:
        device: of networks and of the examples they are given.
        precision: of forward passes in training: `fp32`, or `bf16` or `fp16` by PyTorch's autocast. Convolutions on
            CUDA may use TF32 in either, as `torch.backends.cudnn` says.
        deterministic: whether only operations are used that repeat themselves bit for bit; one that has no such form
            raises.
        threads: PyTorch's threads on the CPU; None leaves them as they are.
    """

    device: torch.device = _CPU
    precision: str = FLOAT32
    deterministic: bool = False
    threads: int | None = None

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def name(self) -> str:
        """The device's name, as tables and records have it."""
        return describe_device(self.device)

    def refuse_types(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Raise `UsageError` if the device cannot hold one of the tensors."""
        if not has_float64(self.device) and any(tensor.dtype == torch.float64 for tensor in tensors):
            raise UsageError(f"{what} is float64, which {self.device} does not hold: use float32, or give --device cpu")

    def put(self, tree: Any) -> Any:
        """Every tensor of a tree on the device; the tree itself on a CPU.

        Copies to CUDA start from pinned memory and are not waited for.
        """
        return tree if self.on_cpu else map_tensors(tree, self._put)

    def _put(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def keep(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copies on the device that stay there as long as the tensors live; the tensors where they do not fit.

        Whether they fit is found once: all of them may take `RESIDENT_SHARE`, 0.2, of the memory that is free.
        """
        if self.on_cpu or any(tensor.device == self.device for tensor in tensors):
            return tensors
        if any(self.device not in _resident.get(tensor, {}) for tensor in tensors):
            fits = sum(tensor.nbytes for tensor in tensors) <= RESIDENT_SHARE * self.free_bytes
            for tensor in tensors:  # not by way of pinned memory, which would take as much again
                _resident.setdefault(tensor, {})[self.device] = tensor.to(self.device) if fits else None
        kept = [_resident[tensor][self.device] for tensor in tensors]
        return tensors if any(one is None for one in kept) else tuple(kept)

    @property
    def free_bytes(self) -> float:
        """Memory that is free on the device, in bytes; infinite where nobody says."""
        if self.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.device)[0])
        if self.device.type == "mps":
            return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        return float("inf")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a training's forward pass."""
        half = HALVES.get(self.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, dtype=half)

    def widened(self, outputs: Any) -> Any:
        """Outputs of a forward pass within `autocast` in float32, in which the loss is computed."""
        halves = HALVES.values()
        if self.precision == FLOAT32:
            return outputs
        return map_tensors(outputs, lambda tensor: tensor.float() if tensor.dtype in halves else tensor)

    def scaler(self) -> GradScaler | None:
        """What keeps small gradients of `fp16` from becoming zero; the others need none."""
        return GradScaler(self.device.type) if self.precision == "fp16" else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Threads and determinism as they are asked for; as they were before at the end."""
        with ExitStack() as before:
            if self.threads is not None:
                before.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.threads)
            if self.deterministic:
                before.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
                before.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
                os.environ.setdefault(*WORKSPACE)
                torch.use_deterministic_algorithms(True)
                torch.backends.cudnn.benchmark = False
            yield

    def give_back_memory(self) -> None:
        """Free what is no longer used, in circles of references too, for whoever allocates next."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


CPU = Placement()


def placement_of(device: str, precision: str, deterministic: bool, threads: int | None) -> Placement:
    """The placement that options ask for; `auto` is the first CUDA device, else MPS, else the CPU.

    Raises:
        EnvironmentProblem: there is no such device here; those that there are are named.
        UsageError: the device does not compute in this precision.
    """
    found = devices()
    if device == AUTO:
        device = found[0]
    elif device == "cuda" and "cuda:0" in found:
        device = "cuda:0"
    if device not in found:
        raise EnvironmentProblem(
            f"--device {device!r} is not here, PyTorch {torch.__version__} sees {', '.join(map(_described, found))}: "
            f"give --device {found[0]}, or leave it out"
        )
    placement = Placement(torch.device(device), precision, deterministic, threads)
    if reason := _obstacle(placement):
        others = " or ".join(one for one in (FLOAT32, *HALVES) if not _obstacle(Placement(placement.device, one)))
        raise UsageError(f"--precision {precision!r} is not computed by {_described(device)} ({reason}): give {others}")
    return placement


def devices() -> list[str]:
    """Every device that a placement can name, the one that `auto` takes first."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def cards(device: str, placement: Placement) -> list[str]:
    """Cards to deal out among processes, as the environment variable `VISIBLE` names them: none where `device`, the
    option, says which one it is.
    """
    if placement.device.type != "cuda" or device.startswith("cuda:"):
        return []
    visible = os.environ.get(VISIBLE)
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _described(device: str) -> str:
    name = describe_device(torch.device(device))
    return device if name == device else f"{device} ({name})"


def _obstacle(placement: Placement) -> str | None:
    """Why autocast does not compute in the precision, in one line; tried by a product and its gradient."""
    half = HALVES.get(placement.precision)
    if half is None:
        return None
    if half is torch.bfloat16 and placement.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "the card has no bf16"
    left, right = (torch.ones(2, 2, device=placement.device, requires_grad=True) for _ in range(2))
    try:
        with placement.autocast():
            product = left @ right
        product.float().sum().backward()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None if product.dtype == half else f"autocast leaves products in {product.dtype}"
