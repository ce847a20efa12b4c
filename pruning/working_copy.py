"""One copy of a model on which many masks are tried, without copying again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning.copying import copy_model
from pruning.masks import apply_masks_


class WorkingCopy:
    """A copy that is the model again after every use, in its parameters and buffers.

    Args:
        model: stays as it is; the copy has its training flags.

    Attributes:
        model: the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy_model(model)
        before = copy_model(model)
        self._parameters = _paired(self.model.named_parameters(), before.named_parameters())
        self._buffers = _paired(self.model.named_buffers(), before.named_buffers())

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The copy under these masks; what happens to its buffers and masked parameters is undone."""
        try:
            apply_masks_(self.model, masks)
            yield self.model
        finally:
            self._restore(masks)

    @torch.no_grad()
    def _restore(self, masks: Mapping[str, Tensor]) -> None:
        for now, before in (*(self._parameters[name] for name in masks), *self._buffers.values()):
            now.copy_(before)


def _paired(
    now: Iterable[tuple[str, Tensor]], before: Iterable[tuple[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    kept = dict(before)
    return {name: (tensor, kept[name]) for name, tensor in now}
