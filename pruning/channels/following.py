"""Follows channels through a forward pass, operation by operation.

Every tensor of the pass gets labels of its elements (see `pruning.channels.labels`); what an operation does to them is
looked up in `pruning.channels.operations`. Operations that are not known there keep the channels they take whole, and
say so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.channels.labels import Axes, Labels, TensorLabels, varies
from pruning.channels.operations import FACTORIES, WRITERS, rule_of
from pruning.channels.rearrangements import Split, beside_channels


@dataclass(eq=False)
class Call:
    """One operation of the pass.

    Attributes:
        name: such as `convolution`, without a trailing underscore.
        out: what it returned.
    """

    follower: Follower
    name: str
    operator: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    @property
    def labels(self) -> Labels:
        return self.follower.labels

    def of(self, value: Any) -> Tensor | None:
        """Labels of the elements of a tensor; None if it is none or has no labels."""
        return self.follower.elements_of(value)

    def raw(self, value: Any) -> Axes | Tensor | None:
        return self.follower.of(value)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def on_labels(self, labels: Tensor) -> Any:
        """The operation itself, done to the labels of its first argument."""
        args, kwargs = tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, (self.args[1:], dict(self.kwargs)))
        return self.operator(labels, *args, **kwargs)

    def block(self, labels: Tensor | None, reason: str) -> None:
        if labels is not None:
            self.labels.block(labels, f"{reason}{self.follower.place}")

    def hint(self, labels: Tensor | None, reason: str) -> None:
        if labels is not None:
            self.labels.hint(labels, f"{reason}{self.follower.place}")


class Follower(TorchDispatchMode):
    """Labels what happens inside its context.

    Attributes:
        emitted: weight -> its dimensions whose labels are those of some operation's outputs.
        computed: weights that were not used as they are -> by what.
        divisors: arrays of labels that something is divided by, or whose root or logarithm is taken.
    """

    def __init__(self, tensors: Mapping[str, Tensor], labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        self.tensors = TensorLabels(tensors, labels)
        self.emitted: dict[str, set[int]] = {}
        self.computed: dict[str, str] = {}
        self.divisors: list[Tensor] = []
        self.splits: list[Split] = []
        self.path: list[str] = []
        self._known = WeakTensorKeyDictionary()
        for name, tensor in tensors.items():
            self._known[tensor] = self.tensors.first(name)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to keep it from compiling `__torch_dispatch__`

    @property
    def place(self) -> str:
        """` in TYPE 'name'` of the module that is running."""
        return f" in {self.path[-1]}" if self.path else ""

    def of(self, value: Any) -> Axes | Tensor | None:
        return self._known.get(value) if isinstance(value, Tensor) else None

    def elements_of(self, value: Any) -> Tensor | None:
        found = self.of(value)
        if not isinstance(found, Axes):
            return found
        self.computed.setdefault(found.name, self.place)
        return self.tensors.elements(found)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        whole = operator._schema.name.rpartition("::")[2]
        if whole in FACTORIES:
            self._known[out] = torch.zeros(out.shape, dtype=torch.int32)
        elif any(tensor in self._known for tensor in given):
            self._follow(Call(self, whole.rstrip("_") or whole, operator, args, kwargs, out), given, whole)
        return out

    def _follow(self, call: Call, given: list[Tensor], whole: str) -> None:
        rule = rule_of(call.name, torch.Tag.pointwise in call.operator.tags)
        writes = whole.endswith("_") and not whole.endswith("__")
        if writes and rule not in WRITERS:
            self._give_up(call, given, f"operation {whole!r} is not followed")
            return
        try:
            labels = rule(call)
        except Exception as error:  # a form of the operation that its rule does not know
            kind = "" if rule is beside_channels else f" ({type(error).__name__})"
            self._give_up(call, given, f"operation {whole!r} is not followed{kind}")
            return
        if writes:
            self._write(call, labels)
            return
        outs = list(call.out) if isinstance(call.out, (tuple, list)) else [call.out]
        found = [labels] if labels is None or isinstance(labels, (Tensor, Axes)) else list(labels)
        for tensor, label in zip(outs, found, strict=False):
            if label is not None and isinstance(tensor, Tensor):
                if isinstance(label, Tensor) and label.shape != tensor.shape:
                    self._give_up(call, given, f"operation {whole!r} is not followed")
                    return
                self._known[tensor] = label

    def _give_up(self, call: Call, given: list[Tensor], reason: str) -> None:
        for tensor in given:
            known = self.of(tensor)
            if isinstance(known, Axes):
                self.computed.setdefault(known.name, self.place)
                for labels in known.labels:
                    call.block(labels, reason)
            elif known is not None and any(varies(known, dim) for dim in range(known.dim())):
                call.block(known, reason)

    def _write(self, call: Call, labels: Tensor | None) -> None:
        """What an operation in place leaves in its first argument, and in tensors it is a view of."""
        if labels is None:
            return
        target = call.args[0]
        known = self.of(target)
        labels = labels.expand(target.shape)
        if isinstance(known, Axes) or known is None:
            self._known[target] = labels
        elif any(step == 0 and length > 1 for step, length in zip(known.stride(), known.shape, strict=True)):
            self.labels.join(known, labels)
            if not known.any():
                self._known[target] = labels
        else:
            known.copy_(torch.where(labels > 0, labels, known))


def settle(follower: Follower) -> None:
    """Decide for divided dimensions which part can shrink, where nothing has decided it yet: the last one."""
    for split in follower.splits:
        roots = follower.labels.roots(split.labels)
        varied = [dim for dim in split.dims if varies(roots, dim)]
        if len(varied) > 1:
            follower.labels.join_along(split.labels, *varied[:-1])


@contextmanager
def followed(model: nn.Module, follower: Follower) -> Iterator[Follower]:
    """Label what happens in this context, with the names of the modules that run."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        label = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: follower.path.append(label)))
        handles.append(module.register_forward_hook(lambda *_: follower.path.pop() and None))
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one operation that does all of attention
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # these flags are not for every device
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))  # as above, of recurrent layers
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(follower)
            yield follower
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
        follower.path.clear()
