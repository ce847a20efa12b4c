"""Whether a network that the user's own loop was given can be used after it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.devices import read_at_once, wide
from search.errors import OwnCodeProblem
from search.training.losses import Diverged

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

    def renamed(self, model: nn.Module) -> str | None:
        """What to say of a network with other names; None of one with the same."""
        found = _shapes(model)
        new, gone = (
            [name for name in one if name not in other] for one, other in ((found, self.shapes), (self.shapes, found))
        )
        if not new and not gone:
            return None
        nearest = difflib.get_close_matches(new[0], gone, n=1, cutoff=0.0)[:1] if new else gone[:1]
        said = [f"{new[0]!r} is new" if new else "", f"{nearest[0]!r} is gone" if nearest else ""]
        return (
            f"train() changed names in the network: {' and '.join(filter(None, said))} ({len(new)} and {len(gone)} in "
            "all); train it as it is, and return None, or of what wraps it the network inside, such as average.module"
        )

    def checked(self, returned: object, taken: int, due: int | None) -> nn.Module:
        """The network that `train` left or returned.

        Args:
            taken: optimizer steps that were seen.
            due: how many there were to be, if anybody knows.

        Raises:
            OwnCodeProblem: it is not the given network or a copy of it, or nothing was trained.
            Diverged: a parameter is not finite.
        """
        if not isinstance(returned, nn.Module):
            raise OwnCodeProblem(
                f"train() must return None or the network, got a {type(returned).__name__}: leave the return out"
            )
        if renamed := self.renamed(returned):
            raise OwnCodeProblem(renamed)
        found = _shapes(returned)
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
                f"train() took no step{f' of {due}' if due else ''} by a torch.optim.Optimizer that holds a parameter "
                "of the network: "
                + (
                    "after each step of another kind of optimizer, call run.hold()"
                    if moved
                    else "make the optimizer of the given network's parameters(), and call its step()"
                )
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
