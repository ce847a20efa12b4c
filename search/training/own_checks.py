"""Whether a network that the user's own loop was given can be used after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.devices import read_at_once, wide
from search.errors import OwnCodeProblem
from search.training.losses import Diverged
from spaces.validation import unknown

BROKEN = 0.5
"""Where more than this share of the pruned weights is not zero after the loop, it has loaded other weights."""


@dataclass(frozen=True)
class Begun:
    """A network as it was before the loop.

    Attributes:
        model: the one that was given.
        shapes: of its parameters and buffers, by name.
        sums: over each parameter, and over its absolute values.
    """

    model: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    sums: list[float]

    @classmethod
    def of(cls, model: nn.Module) -> Begun:
        return cls(model, _shapes(model), _sums(model))

    def checked(self, returned: object, taken: int) -> nn.Module:
        """The network that `train` left or returned.

        Args:
            taken: optimizer steps that were seen.

        Raises:
            OwnCodeProblem: it is not the given network or a copy of it, or nothing was trained.
            Diverged: a parameter is not finite.
        """
        if not isinstance(returned, nn.Module):
            raise OwnCodeProblem(
                f"train() must return None or the network, got a {type(returned).__name__}: leave the return out"
            )
        found = _shapes(returned)
        if foreign := [name for name in found if name not in self.shapes]:
            raise OwnCodeProblem(
                f"train() left other names in the network: {unknown('tensor', foreign[0], self.shapes)}; return the "
                "network that was given, or the one inside of what wraps it, such as average.module"
            )
        if missing := [name for name in self.shapes if name not in found]:
            raise OwnCodeProblem(
                f"train() left a network without {missing[0]!r}: {len(missing)} of {len(self.shapes)} tensors are "
                "missing; return the network that was given"
            )
        for name, shape in self.shapes.items():
            if found[name] != shape:
                raise OwnCodeProblem(
                    f"train() left {name!r} with shape {found[name]}, it was {shape}: what is removed is for the "
                    "search to say"
                )
        for name, parameter in returned.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise Diverged(f"train() left NaN or infinite values in {name!r}")
        moved = _sums(returned) != self.sums
        if not taken:
            raise OwnCodeProblem(
                "train() took no step of a torch.optim.Optimizer that holds a parameter of the network"
                + (": after each step of another kind of optimizer, call run.hold()" if moved else "")
            )
        if not moved:
            raise OwnCodeProblem(
                f"train() took {taken} optimizer steps, and no parameter moved: see that the learning rate is above 0 "
                "and that gradients reach the network"
            )
        return returned


@torch.no_grad()
def restored_(model: nn.Module, masks: Mapping[str, Tensor], begun: Begun, versions: Mapping[str, int]) -> int:
    """Set masked weights to zero again, in place; returns how many were not.

    A copy may hold many, such as an average over weights that were not pruned yet.

    Args:
        versions: of the parameters after the last step, as PyTorch counts changes in place.

    Raises:
        OwnCodeProblem: of the given network, other weights were loaded after the last step.
    """
    parameters = dict(model.named_parameters())
    gone = [(parameters[name], ~mask.to(parameters[name].device)) for name, mask in masks.items()]
    found = int(sum(read_at_once([((one != 0) & away).sum() for one, away in gone])))
    masked = int(sum(read_at_once([away.sum() for _, away in gone])))
    loaded = model is begun.model and any(parameters[name]._version != version for name, version in versions.items())
    if loaded and found > BROKEN * masked:
        raise OwnCodeProblem(
            f"train() ended with other weights than it trained: {found} of {masked} pruned weights are not zero; "
            "load only what was kept when run.settled was true, or return an average as a copy of the network"
        )
    for parameter, away in gone:
        parameter.masked_fill_(away, 0)
    return found


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _sums(model: nn.Module) -> list[float]:
    parts = (wide(one.detach()) for one in model.parameters())
    return read_at_once(total for part in parts for total in (part.sum(), part.abs().sum()))
