"""Tries a traced graph out, to find groups of channels whose removal does not equal the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pruning.channels.containers import try_in_containers
from pruning.channels.graph import ChannelGraph
from pruning.channels.plan import RemovalPlan, plan_units
from pruning.channels.removal import NOT_RUNNING, difference_of, mask_removed, one_line, outputs_of, raise_lack
from pruning.channels.structure import apply_structure
from pruning.trees import NetworkInputs
from spaces.counting import removed_count

TRIAL_SHARES = 0.25, 0.4, 0.15
"""Shares of units, in turn, that are removed of the groups when a traced graph is tried out. They differ, since groups
that fit together only where they lose the same share must not pass.
"""
INITIAL_SIZE = 1e-4
"""A parameter whose mean |element| is at most this is taken to be near zero since its initialisation, such as a layer
scale's 1e-6.
"""


def fits(model: nn.Module, graph: ChannelGraph) -> bool:
    """Whether the removal of about a quarter of every usable group's units goes well; changes `model`, and raises, as
    `find_offenders`.
    """
    _perturb_(model)
    return _Trials(model, graph).failure(_usable(graph)) is None


def _usable(graph: ChannelGraph) -> list[int]:
    return [number for number, group in enumerate(graph.network.groups) if group.obstacle is None]


def find_offenders(
    model: nn.Module, graph: ChannelGraph, hints: Mapping[int, str], calls: Mapping[nn.Module, int]
) -> dict[int, str]:
    """Try a traced graph out: usable groups whose removal goes wrong -> how.

    About a quarter of every usable group's units is removed at once. If that fails, one pass tries each group inside
    the module that contains it (see `pruning.channels.containers`); groups that remain doubtful are found by halving.

    Args:
        model: the traced model in eval mode; changed in place: its biases, norms and all-zero tensors are moved off
            their initial values, which would hide a wrong removal.
        hints: number of a group -> the likely cause if its removal goes wrong.
        calls: how often each module of `model` runs in eval mode.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: there is too little memory.
    """
    _perturb_(model)
    trials = _Trials(model, graph)
    usable = _usable(graph)
    if trials.failure(usable) is None:
        return {}
    likely_first = sorted(usable, key=lambda number: number not in hints)
    verdicts = try_in_containers(model, graph, calls, {number: trials.plan([number]) for number in likely_first})
    failing, suspects = verdicts.failing, verdicts.suspects
    rest = [number for number in usable if number not in failing]
    if trials.failure(rest) is None:
        return failing
    others = [number for number in rest if number not in suspects]
    found = trials.offenders(sorted(others, key=lambda number: number in hints))
    for number in sorted(suspects):
        found |= trials.offenders([number])
    found |= trials.offenders([number for number in rest if number not in found])
    return failing | {n: f"{reason}; {hints[n]}" if n in hints else reason for n, reason in found.items()}


def _perturb_(model: nn.Module) -> None:
    parameters = {name for name, _ in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        is_vector = tensor.numel() == max((*tensor.shape, 1))  # such as a norm's scale, or a layer's (C, 1, 1)
        if tensor.is_floating_point() and tensor.numel() and (is_vector or not tensor.any()):
            size = float(tensor.abs().mean())
            scale = 0.1 * (1 if size <= (INITIAL_SIZE if name in parameters else 0) else size)
            tensor += scale * torch.rand(tensor.shape, generator=generator).to(tensor)


class _Trials:
    """Removals of some units of some groups, each tried once."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._model, self._graph = model, graph
        self._known: dict[frozenset[int], str | None] = {frozenset(): None}

    def plan(self, numbers: Sequence[int]) -> RemovalPlan:
        """What is removed of these groups."""
        chosen = {}
        for number in numbers:
            units, share = self._graph.network.groups[number].units, TRIAL_SHARES[number % len(TRIAL_SHARES)]
            shuffled = np.random.default_rng(number).permutation(units)
            chosen[number] = shuffled[: max(removed_count(share, units), 1)]
        return plan_units(self._graph, chosen)

    def failure(self, numbers: Sequence[int]) -> str | None:
        """Remove some units of these groups; what goes wrong, or None."""
        key = frozenset(numbers)
        if key not in self._known:
            self._known[key] = self._try_out(self.plan(numbers))
        return self._known[key]

    def offenders(self, numbers: Sequence[int]) -> dict[int, str]:
        """Groups among `numbers` whose removal differs from the mask -> how; found by halving."""
        reason = self.failure(numbers)
        if reason is None:
            return {}
        half = len(numbers) // 2
        found = self.offenders(numbers[:half]) | self.offenders(numbers[half:]) if half else {}
        if not found:
            return dict.fromkeys(numbers, reason)
        return found | self.offenders([number for number in numbers if number not in found])

    def _try_out(self, plan: RemovalPlan) -> str | None:
        example, network = self._graph.example_input, self._graph.network
        small = apply_structure(self._model, plan.structure)
        try:
            actual = outputs_of(small, example)
        except Exception as error:
            raise_lack(error)
            return f"removal does not equal the mask: {NOT_RUNNING}, {one_line(error)}"
        masked = mask_removed(self._model, plan)
        difference = difference_of(outputs_of(masked, example), actual)
        if difference is not None:
            return f"removal does not equal the mask: {difference}"
        if all(layer.positions for layer in network.prunable):
            return None
        return _training_failure(masked, small, example)


def _training_failure(masked: nn.Module, small: nn.Module, example: NetworkInputs) -> str | None:
    """How the smaller network fails in training mode, if the dense one does not; None if it runs."""
    pair = example[torch.arange(2 * len(example)) % len(example)]
    try:
        outputs_of(masked, pair, training=True)
    except Exception as error:
        raise_lack(error)
        return None
    try:
        outputs_of(small, pair, training=True)
    except Exception as error:
        raise_lack(error)
        return f"the smaller network fails in training mode, which runs more layers: {one_line(error)}"
    return None
