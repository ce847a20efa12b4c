"""A second device that is not the CPU as far as PyTorch can tell, and computes on it: what assumes a CPU fails here.

As on CUDA, tensors of two devices do not mix, but for single numbers and CPU indices; a CPU generator draws nothing
here, and NumPy sees nothing. Like MPS, it holds no float64 while its name is in `WITHOUT_FLOAT64`. What would make a
program wait for a real device, and what is copied to it, is counted.

Importing this registers the device for the process, and as what `torch.accelerator` finds; it has no random state.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from pruning.devices import WITHOUT_FLOAT64

NAME = "fake"
ROOT = Path(__file__).parents[2]
PACKAGES = tuple(str(ROOT / name) for name in ("spaces", "pruning", "search"))
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operators that take CPU indices into a tensor of the device."""
WAITING = ("item", "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")
"""Operators whose result the program has to wait for."""
TWO_DEVICES = "Expected all tensors to be on the same device, but found at least two devices, fake:0 and cpu!"


@dataclass
class Traffic:
    """What went between the CPU and the device: line of ours -> how often.

    Attributes:
        waits: for the device, which stop it from working ahead.
        copies: to the device.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.waits.clear()
        self.copies.clear()


_watched: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts what goes to and from the device within it."""
    found = Traffic()
    _watched.append(found)
    try:
        yield found
    finally:
        _watched.remove(found)


def _note(kind: str, operator: str) -> None:
    if _watched:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGES):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "?"
        for found in _watched:
            getattr(found, kind)[f"{where} {operator}"] += 1


class OnDevice(torch.Tensor):
    """A tensor of the device; `raw` is the CPU tensor that it computes with."""

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        if raw.dtype == torch.float64 and NAME in WITHOUT_FLOAT64:
            raise TypeError("Cannot convert a fake Tensor to float64 dtype as the framework doesn't support float64.")
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.raw!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                copied = OnDevice(self.raw.clone(memory_format=torch.preserve_format))
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if parameter else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    def numpy(self, **options):
        raise TypeError("can't convert fake:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def tolist(self):
        _note("waits", "tolist")
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, other)
        self.raw = other.raw

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _raw(value):
    return value.raw if isinstance(value, OnDevice) else value


def _run(function, args, kwargs):
    """One operator, with the device's rules, on the CPU."""
    name = function._schema.name.split("::")[1]
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    here = [one for one in tensors if isinstance(one, OnDevice)]
    away = [one for one in tensors if not isinstance(one, OnDevice) and one.dim() > 0]
    target = kwargs.get("device")
    to_here = target is not None and torch.device(target).type == NAME
    raw_args, raw_kwargs = tree_map(_raw, args), tree_map(_raw, dict(kwargs))
    if target is not None:
        raw_kwargs["device"] = "cpu"
    if name == "_to_copy":
        made = function(*raw_args, **raw_kwargs)
        if here and target is not None and not to_here:
            _note("waits", "to the CPU")
        if not here and to_here:
            _note("copies", "from the CPU")
        return OnDevice(made) if to_here or (here and target is None) else made
    if name == "copy_":
        _noted_copy(args[1], args[0])
        function(*raw_args, **raw_kwargs)
        return args[0]
    if here and name in WAITING:
        _note("waits", name)
    if away and here and name == "equal":
        raise RuntimeError(f"{TWO_DEVICES} (equal)")
    if here and name in ("item", "_local_scalar_dense", "equal", "is_nonzero"):
        return function(*raw_args, **raw_kwargs)
    if name in INDEXING and (here or to_here):
        _check_indexing(args, here, away, name)
    elif here and away:
        raise RuntimeError(f"{TWO_DEVICES} ({name})")
    on_device = to_here if target is not None else bool(here)
    _check_generator(args, kwargs, on_device, name)
    made = function(*raw_args, **raw_kwargs)

    def wrapped(one):
        if not isinstance(one, torch.Tensor):
            return one
        same = next((given for given in here if given.raw is one), None)
        return same if same is not None else OnDevice(one) if on_device else one

    return tree_map(wrapped, made)


def _check_indexing(args, here, away, name) -> None:
    if not isinstance(args[0], OnDevice):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    indices = [one for one in args[1] if isinstance(one, torch.Tensor)]
    if any(not isinstance(one, OnDevice) for one in indices):
        _note("copies", "CPU index")
    if any(isinstance(one, OnDevice) and one.dtype in (torch.bool, torch.uint8) for one in indices):
        _note("waits", "index of bools")
    if any(not isinstance(one, OnDevice) and one.dim() > 0 for one in args[2:3]):
        raise RuntimeError(f"{TWO_DEVICES} ({name})")


def _check_generator(args, kwargs, on_device, name) -> None:
    generators = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Generator)]
    if on_device and any(one.device.type == "cpu" for one in generators):
        raise RuntimeError(f"Expected a 'fake' device type for generator but found 'cpu' ({name})")


def _noted_copy(source, target) -> None:
    if isinstance(source, OnDevice) and not isinstance(target, OnDevice):
        _note("waits", "copy_")
    if not isinstance(source, OnDevice) and isinstance(target, OnDevice) and source.dim() > 0:
        _note("copies", "copy_")


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnDevice(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _copy_from(source, target, non_blocking=False):
    _noted_copy(source, target)
    _raw(target).copy_(_raw(source))
    return target


backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
_module = sys.modules[f"torch.{NAME}"]
_module.__name__ = f"torch.{NAME}"
_module.get_rng_state = lambda device=0: torch.empty(0, dtype=torch.uint8)  # for `fork_rng` without devices
_module.set_rng_state = lambda state, device=0: None
_every = torch.library.Library("_", "IMPL")
_every.fallback(lambda function, *args, **kwargs: _run(function, args, kwargs), "PrivateUse1")
_few = torch.library.Library("aten", "IMPL")
_few.impl("empty_strided", _empty_strided, "PrivateUse1")
_few.impl("empty.memory_format", _empty, "PrivateUse1")
_few.impl("_copy_from", _copy_from, "PrivateUse1")
