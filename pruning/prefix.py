"""Forward passes that start where a changed tensor is first used, for any module.

A pass of the dense model is recorded operation by operation. A candidate, the same network with some tensors
changed, computes what the dense model computes up to the first operation that takes a changed tensor; those
operations are skipped, and only the tensors later ones take are kept. The module's own Python code runs as always
and gets placeholders that know their shape but hold no numbers, so whatever looks into one fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.copying import copy_model
from pruning.outputs import tensors_in

_Place = tuple[int, int]
"""Number of an operation, and of a tensor among what it returns."""


class Deviation(RuntimeError):
    """A candidate did not take the recorded steps, so its outputs are not to be trusted."""


class RecordedPass:
    """A pass of one model over all batches that candidates repeat from their first changed tensor on.

    Exact for models that compute the same from the same input and state: steps that depend on data are
    followed, others (a module that counts its calls, say) raise `Deviation` when they show.

    Args:
        model: stays as it is.
        drive: makes the pass, by calling the module it gets on one batch after another, the same each time
            and without gradients; it may change buffers. A call may return None instead of outputs.
        limit: bytes kept at most; passes that would need more start at the beginning.

    Attributes:
        result: what `drive` returned.
        model: a copy of the model in the state after the pass.
    """

    def __init__(self, model: nn.Module, drive: Callable[[nn.Module], Any], limit: int) -> None:
        self.model = copy_model(model)
        self._drive, self._limit = drive, limit
        self._begin = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        recorder = _Recorded(self.model)
        self.result = drive(recorder)
        self._calls = recorder.calls
        self._buffers = dict(self.model.named_buffers())
        self._tensors = dict(self.model.named_parameters()) | self._buffers
        self._updated = [name for name, old in self._begin.items() if not torch.equal(old, self._buffers[name])]
        self._end = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._known_starts: dict[frozenset[str], list[int]] = {}
        self._starts = [0] * len(self._calls)
        self._held: list[dict[_Place, Tensor]] = [{} for _ in self._calls]

    def start(self, changed: set[str]) -> int:
        """Number of the operation, in the first batch, at which such a candidate starts."""
        return self._boundaries(changed)[0]

    def repeat(self, candidate: nn.Module, changed: set[str]) -> tuple[Any, set[str]]:
        """Make the pass with a candidate, which ends in the state a whole pass would leave.

        Args:
            candidate: the recorded model but for the tensors named.
            changed: names of parameters and buffers.

        Returns:
            What `drive` returned, and the names of all tensors that may now differ from `model`'s.

        Raises:
            Deviation: it took other steps; `candidate` is in no state to be used then. Other errors are
                possible too when steps deviate.
        """
        starts = self._boundaries(changed)
        if starts != self._starts:
            self._advance(starts)
        repeated = _Repeated(candidate, self._calls, self._starts, self._held)
        result = self._drive(repeated)
        repeated.check()
        differing = set(changed)
        buffers = dict(candidate.named_buffers()) if self._updated else {}
        for name in self._updated:
            storage = _storage(self._tensors[name])
            calls = zip(self._calls, starts, strict=True)
            if any(call.last_use.get(storage, -1) >= start for call, start in calls):
                differing.add(name)
            else:
                buffers[name].copy_(self._end[name])
        return result, differing

    def _boundaries(self, changed: set[str]) -> list[int]:
        """Where each batch's call starts."""
        key = frozenset(changed)
        if key not in self._known_starts:
            self._known_starts[key] = self._find_starts(changed)
        return self._known_starts[key]

    def _find_starts(self, changed: set[str]) -> list[int]:
        changed_storages = {_storage(self._tensors[name]) for name in changed}
        updated = {_storage(self._buffers[name]) for name in self._updated}
        starts = [call.first(changed_storages, updated) for call in self._calls]
        kept = sum(call.held_bytes(start) for call, start in zip(self._calls, starts, strict=True))
        return starts if kept <= self._limit else [0] * len(starts)

    def _advance(self, starts: list[int]) -> None:
        """Bring what is held to other starts; later ones begin at the present ones."""
        if any(new < old for new, old in zip(starts, self._starts, strict=True)):
            self._starts, self._held = [0] * len(starts), [{} for _ in starts]
        if any(starts):
            scout = _Repeated(self.model, self._calls, self._starts, self._held, stops=starts)
            _fill_(self._buffers, self._begin)
            try:
                self._drive(scout)
            finally:
                _fill_(self._buffers, self._end)
            scout.check()
            self._held = scout.kept
        self._starts = starts


@dataclass(frozen=True, eq=False)
class _Fresh:
    """A tensor an operation returned: enough to stand in for it."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bytes: int


@dataclass(frozen=True)
class _Given:
    """An operation returned its own argument, the tensor of this number among them."""

    number: int


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation: its arguments that are no tensors, and what it returns, leaf by leaf."""

    operator: Any
    constants: list[Any]
    returns: list[Any]
    form: TreeSpec | None  # None for a single tensor
    is_view: bool  # of tensors from outside the pass; cheap and done again


class _Call:
    """The recorded steps of one forward call.

    Tensors made in the call are known by their `_Place`; those from outside (parameters, buffers, inputs) by
    the address of their storage.
    """

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.first_use: dict[int, int] = {}
        self.last_use: dict[_Place | int, int] = {}
        self.written: set[int] = set()

    def first(self, changed: set[int], updated: set[int]) -> int:
        """First step that takes a changed tensor, or an outside one that is taken before and after and
        written meanwhile: its state between them is not kept."""
        uses = [self.first_use[storage] for storage in changed if storage in self.first_use]
        start = min(uses, default=len(self.steps))
        for storage in sorted(self.written | updated, key=lambda s: -self.first_use.get(s, 0)):
            if self.first_use.get(storage, start) < start <= self.last_use[storage]:
                start = self.first_use[storage]
        return start

    def held(self, start: int) -> set[_Place]:
        """Tensors made before this step and taken from it on."""
        return {p for p, last in self.last_use.items() if isinstance(p, tuple) and p[0] < start <= last}

    def held_bytes(self, start: int) -> int:
        return sum(self.steps[step].returns[number].bytes for step, number in self.held(start))


class _Mode(TorchDispatchMode):
    """Sees every operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to keep it from compiling `__torch_dispatch__`


class _Recorder(_Mode):
    """Writes down the steps of one call, without keeping its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.call = _Call()
        self._places = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given, constants = _parted((args, kwargs or {}))
        foreign = [tensor for tensor in given if not self._use(tensor)]
        outside = {_storage(tensor) for tensor in foreign}
        written = {_storage(tensor) for tensor in _written(operator, args, kwargs or {})}
        self.call.written |= written & outside
        result = operator(*args, **(kwargs or {}))
        leaves, form = ([result], None) if isinstance(result, Tensor) else tree_flatten(result)
        is_view = False
        returns = []
        for number, leaf in enumerate(leaves):
            same = next((n for n, tensor in enumerate(given) if tensor is leaf), None)
            if not isinstance(leaf, Tensor):
                returns.append(leaf)
            elif same is not None:
                returns.append(_Given(same))
            else:
                if _storage(leaf) in outside and len(foreign) == len(given):
                    is_view = True
                else:
                    self._places[leaf] = (len(self.call.steps), number)
                room = leaf.untyped_storage().nbytes()
                returns.append(_Fresh(leaf.shape, leaf.stride(), leaf.dtype, leaf.device, room))
        self.call.steps.append(_Step(operator, constants, returns, form, is_view))
        return result

    def finish(self, outputs: Any) -> _Call:
        """The call, whose outputs count as taken by a step after the last."""
        for tensor in tensors_in(outputs):
            self._use(tensor)
        return self.call

    def _use(self, tensor: Tensor) -> bool:
        """Note that the step about to come takes this tensor; True if it was made in this call."""
        place = self._places.get(tensor)
        key = _storage(tensor) if place is None else place
        if place is None:
            self.call.first_use.setdefault(key, len(self.call.steps))
        self.call.last_use[key] = len(self.call.steps)
        return place is not None


class _Repeater(_Mode):
    """Skips the steps of a call before `start`, and ends it at `stop`, keeping what is then held."""

    def __init__(self, call: _Call, start: int, held: dict[_Place, Tensor], stop: int | None) -> None:
        super().__init__()
        self.kept: dict[_Place, Tensor] = {}
        self._call, self._start, self._stop = call, start, stop
        self._held = _copied(held)  # steps to come may write into them
        self._wanted: dict[int, set[int]] = {}
        for step, place in call.held(stop) if stop is not None else ():
            self._wanted.setdefault(step, set()).add(place)
        self._number = 0
        self._deviation: str | None = None

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        number = self._number
        if number == self._stop:
            raise _Reached
        self._number += 1
        if number < self._start:
            result = self._skipped(number, operator, args, kwargs or {})
        else:
            result = self._computed(operator, args, kwargs or {})
        if number in self._wanted:
            leaves = enumerate(tree_leaves(result))
            self.kept |= {(number, place): leaf for place, leaf in leaves if place in self._wanted[number]}
        return result

    def check(self) -> None:
        """Raise `Deviation` unless every skipped step was the recorded one."""
        if self._number < max(self._start, self._stop or 0):
            self._deviation = self._deviation or f"the call ended before operation {self._number}"
        if self._deviation:
            raise Deviation(self._deviation)

    def _computed(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return operator(*args, **kwargs)
        except Deviation as deviation:  # remembered, in case the module catches errors
            self._deviation = str(deviation)
            raise

    def _skipped(self, number: int, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self._call.steps[number]
        given, constants = _parted((args, kwargs))
        if operator is not step.operator or constants != step.constants:
            self._deviation = f"operation {number} was {step.operator}{step.constants}, now it is {operator}{constants}"
            self.check()
        if step.is_view:
            return self._computed(operator, args, kwargs)
        leaves = [self._returned(number, place, leaf, given) for place, leaf in enumerate(step.returns)]
        return leaves[0] if step.form is None else tree_unflatten(leaves, step.form)

    def _returned(self, number: int, place: int, leaf: Any, given: list[Tensor]) -> Any:
        if isinstance(leaf, _Given):
            return given[leaf.number]
        if isinstance(leaf, _Fresh):
            held = self._held.get((number, place))
            return _Placeholder.of(leaf) if held is None else held
        return leaf


class _Reached(BaseException):
    """Ends a call where it need not go on; no error, so that no module takes it for one."""


class _Placeholder(Tensor):
    """Stands for a tensor that was not computed; no operation may take it."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(fresh: _Fresh) -> _Placeholder:
        return Tensor._make_wrapper_subclass(
            _Placeholder, fresh.shape, strides=fresh.stride, dtype=fresh.dtype, device=fresh.device
        )

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        raise Deviation(f"{operator} takes a tensor that it did not take when recorded")


class _Recorded(nn.Module):
    """Records every call of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self.calls: list[_Call] = []

    def forward(self, batch: Tensor) -> Any:
        with _Recorder() as recorder:
            outputs = self._model(batch)
        self.calls.append(recorder.finish(outputs))
        return outputs


class _Repeated(nn.Module):
    """Repeats recorded calls in their order, with another module."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[_Call],
        starts: Sequence[int],
        held: Sequence[dict[_Place, Tensor]],
        stops: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self.kept: list[dict[_Place, Tensor]] = []
        self._rest = iter(list(zip(calls, starts, held, stops or [None] * len(calls), strict=True)))

    def forward(self, batch: Tensor) -> Any:
        recorded = next(self._rest, None)
        if recorded is None:
            raise Deviation("the pass makes more calls than the recorded one")
        outputs = None
        repeater = _Repeater(*recorded)
        try:
            with repeater:
                outputs = self._model(batch)
        except _Reached:
            pass
        repeater.check()
        self.kept.append(repeater.kept)
        return outputs

    def check(self) -> None:
        """Raise `Deviation` if recorded calls are left."""
        if next(self._rest, None) is not None:
            raise Deviation("the pass makes fewer calls than the recorded one")


def _parted(tree: Any) -> tuple[list[Tensor], list[Any]]:
    """The tensors in nested arguments, and the rest."""
    tensors, rest = [], []
    pending = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            pending.extend(reversed(value))
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))
        else:
            rest.append(value)
    return tensors, rest


def _copied(held: dict[_Place, Tensor]) -> dict[_Place, Tensor]:
    """Copies in which views of one storage are still that."""
    alone = len({_storage(tensor) for tensor in held.values()}) == len(held)
    if alone and all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held.values()):
        return {place: tensor.clone() for place, tensor in held.items()}
    return copy.deepcopy(held)


def _fill_(buffers: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        buffers[name].copy_(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Arguments the operation declares to write into."""
    for number, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from _parted(value)[0]
