"""Follows channels through a forward pass, operation by operation.

Every tensor of the pass gets labels of its elements (see `pruning.channels.labels`); `pruning.channels.operations` says
what each operation does to them. An operation that is not known there keeps the channels it takes from being removed,
and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning.channels.call import Call, PassNotes, Running
from pruning.channels.labels import Axes, Labels, varies
from pruning.channels.operations import FACTORIES, WRITERS, rule_of
from pruning.channels.rearrangements import beside_channels


class Follower(TorchDispatchMode):
    """Labels the tensors of what runs inside its context, and keeps notes on the pass."""

    def __init__(self, tensors: Mapping[str, Tensor], labels: Labels, schemes: Mapping[str, int]) -> None:
        super().__init__()
        self.notes = PassNotes(tensors, labels, schemes)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to keep it from compiling `__torch_dispatch__`

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        whole = operator._schema.name.rpartition("::")[2]
        if whole == "_softmax" or whole.startswith("_scaled_dot_product"):
            self.notes.attending.update(running.name for running in self.notes.path)
        if whole in FACTORIES:
            self.notes.known[out] = torch.zeros(out.shape, dtype=torch.int32)
        elif any(tensor in self.notes.known for tensor in given):
            self._follow(Call(self.notes, whole.rstrip("_") or whole, operator, args, kwargs, out), given, whole)
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
                self.notes.known[tensor] = label

    def _give_up(self, call: Call, given: list[Tensor], reason: str) -> None:
        for tensor in given:
            known = self.notes.of(tensor)
            if isinstance(known, Axes):
                self.notes.computed.setdefault(known.name, self.notes.place)
                for labels in known.labels:
                    call.block(labels, reason)
            elif known is not None and any(varies(known, dim) for dim in range(known.dim())):
                call.block(known, reason)

    def _write(self, call: Call, labels: Tensor | None) -> None:
        """Record the labels that an in-place operation leaves in its first argument, and in tensors that this is a view
        of.
        """
        if labels is None:
            return
        target = call.args[0]
        known = self.notes.of(target)
        labels = labels.expand(target.shape)
        if isinstance(known, Axes) or known is None:
            self.notes.known[target] = labels
        elif any(step == 0 and length > 1 for step, length in zip(known.stride(), known.shape, strict=True)):
            self.notes.labels.join(known, labels)
            if not known.any():
                self.notes.known[target] = labels
        else:
            known.copy_(torch.where(labels > 0, labels, known))


def settle(notes: PassNotes) -> None:
    """For divided dimensions, decide which part can shrink: unless something else has decided it, the last one."""
    for split in notes.splits:
        roots = notes.labels.roots(split.labels)
        varied = [dim for dim in split.dims if varies(roots, dim)]
        if len(varied) > 1:
            notes.labels.join_along(split.labels, *varied[:-1])


def _enter(notes: PassNotes, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    given = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    notes.path.append(Running(name, module, given))


@contextmanager
def followed(model: nn.Module, follower: Follower) -> Iterator[Follower]:
    """Label what runs in this context, and note the names of the running modules."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(partial(_enter, follower.notes, name), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda *_: follower.notes.path.pop() and None))
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
        follower.notes.path.clear()
