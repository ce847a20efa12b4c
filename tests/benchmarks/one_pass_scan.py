"""Do gradients times output changes rank layers and levels as the measured scan does?

    python tests/benchmarks/one_pass_scan.py [WORKLOAD ...]

The idea: one backward pass gives the gradient g of each example's loss by the output y of every layer, or of the
BatchNorm that follows it; a mask changes that output by dy, which takes a pass through this layer alone. For every
layer and level of a whole scan (and width of a rounding), these are taken as estimates of the damage, d being the sum
of g dy over one example:

    first order       mean of d
    size of it        mean of |d|
    Fisher            mean of d^2 / 2, of the data's labels
    Fisher, drawn     mean of d^2 / 2, of labels drawn from what the network predicts
    second order      mean of d, and of d^2 / 2 with drawn labels
    by elements       sum of (g dy)^2 over examples and elements, as quantization tools do
    without gradients sum of dy^2 over that of y^2
    level alone       the share that goes

Channels that go together are measured together: d is summed over their layers. Norms know the statistics of the
examples, of the dense network and of the changed layer alike, since the scan recalibrates. Gradients are taken with
norms that keep these statistics, and again with norms that follow their inputs. As the scan's, estimates are made
non-decreasing in the level.

Prints Spearman's rank correlation with the scan's damages over all layers and levels, and its mean over single levels,
for each workload, what is pruned, gradients and estimate. At the levels of a brief scan so too of its damages, and of
these with the second order in place of all that are small by both. Then one JSON line. Dense models and profiles stay
in the folder `--cache`, which `cheap_scan.py` shares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cheap_scan import BITS, ENOUGH, GRANULARITIES, LEVELS, PLACE, WORKLOADS, prepared_model, scanned, spearman
from study import hardware
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning.analysis.sensitivity_scan import BRIEF_LEVELS, ROUNDING, SCAN_EXAMPLES
from pruning.batchnorm import learning_norms, recalibrate_
from pruning.calibration import evenly_spaced
from pruning.copying import copy_model
from pruning.file.rounding import round_weight
from pruning.mask_cache import MaskCache
from pruning.masks import apply_masks_
from pruning.modules import output_dim, prunable_weights
from pruning.trees import contents, run
from search.cli.text_tables import render
from search.training.evaluate import PreparedModel
from search.training.examples import calibration_data
from spaces.allocation.knobs import knobs_of
from spaces.policy import PruningPolicy
from spaces.sensitivity import Profile

ESTIMATES = (
    "first order", "size of it", "Fisher", "Fisher, drawn", "second order", "by elements", "without gradients",
    "level alone",
)  # fmt: skip
FROZEN, MOVING = "frozen", "moving"
BRIEF, TOGETHER = "brief scan", "brief scan, small ones second order"
SMALL = 0.05
"""Damage below which the second order is taken."""


@dataclass(frozen=True)
class Site:
    """A layer, and the norm that follows it, in one pass over all examples; tensors are (n, ...).

    Attributes:
        inputs: of the layer.
        outputs: of the norm, or of a layer without one.
        gradients: of each example's loss by them.
        drawn: likewise, of a label that is drawn.
    """

    layer: str
    norm: str | None
    inputs: Tensor
    outputs: Tensor
    gradients: Tensor
    drawn: Tensor

    def change(self, model: nn.Module) -> Tensor:
        """Of the outputs, where `model` has changed weights."""
        found = model.get_submodule(self.layer)(self.inputs)
        if self.norm is not None:
            found = model.get_submodule(self.norm).train()(found)
        return found - self.outputs


def sites_of(prepared: PreparedModel, inputs: Any, targets: Tensor, norms: str) -> dict[str, Site]:
    """Weight -> its site, from one forward and two backward passes."""
    model = copy_model(prepared.dense)
    recalibrate_(model, [inputs])
    model.eval()
    for norm in learning_norms(model):
        norm.train()  # outputs are of the examples' statistics in either case
    names = {weight: weight.rpartition(".")[0] for weight in prunable_weights(model)}
    modules = dict(model.named_modules())
    following = {weight: norm for weight, norm in prepared.graph.norms.items() if norm in modules}
    seen: dict[str, list[Tensor]] = {}

    def remember(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen[name] = [given[0], output]
            return output.clone()  # which an activation may change in place

        return hook

    def still(norm: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The same outputs, whose gradients know the statistics as constants."""
        x = given[0].detach()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        var, mean = torch.var_mean(x, dims, correction=0)
        scale = norm.weight / (var + norm.eps).sqrt()
        return (given[0] - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)

    if norms == FROZEN:
        for norm in learning_norms(model):
            norm.register_forward_hook(still)
    for name in {*names.values(), *following.values()}:
        modules[name].register_forward_hook(remember(name))
    outputs = run(model, inputs)
    ends = {weight: seen[following.get(weight, name)][1] for weight, name in names.items()}
    labels = torch.multinomial(outputs.detach().softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    found = []
    for wanted in (targets, labels):
        loss = cross_entropy(outputs, wanted, reduction="sum")
        found.append(torch.autograd.grad(loss, [*ends.values()], retain_graph=True))
    return {
        weight: Site(names[weight], following.get(weight), seen[names[weight]][0].detach(), end.detach(), own, drawn)
        for (weight, end), own, drawn in zip(ends.items(), *found, strict=True)
    }


@torch.no_grad()
def estimates(model: nn.Module, sites: Sequence[Site]) -> dict[str, float]:
    """Estimate -> damage of the changes of `model` at these sites."""
    own = drawn = by_elements = moved = whole = torch.zeros(())
    for site in sites:
        change = site.change(model)
        own = own + (site.gradients * change).flatten(1).sum(1)
        drawn = drawn + (site.drawn * change).flatten(1).sum(1)
        by_elements = by_elements + (site.gradients * change).square().sum()
        moved, whole = moved + change.square().sum(), whole + site.outputs.square().sum()
    first, fisher = float(own.mean()), float(drawn.square().mean()) / 2
    return {
        "first order": first,
        "size of it": float(own.abs().mean()),
        "Fisher": float(own.square().mean()) / 2,
        "Fisher, drawn": fisher,
        "second order": first + fisher,
        "by elements": float(by_elements),
        "without gradients": float(moved / whole),
    }


def changes(prepared: PreparedModel, what: str) -> Iterator[tuple[str, tuple[str, ...], list[tuple[float, nn.Module]]]]:
    """(Knob, its layers, the share that goes and the changed network at each level of the scan)."""
    if what == ROUNDING:
        for name in prepared.network.layer_names:
            yield name, (name,), [(float(-bits), rounded(prepared.dense, name, bits)) for bits in BITS]
        return
    rankings = MaskCache(prepared.dense, prepared.graph)
    for knob in knobs_of(prepared.network, what).values():
        networks = []
        for level in LEVELS:
            masks = rankings.masks(PruningPolicy(dict.fromkeys(knob.layers, level), what, criterion="magnitude-l2"))
            apply_masks_(model := copy_model(prepared.dense), masks)
            networks.append((level, model))
        yield knob.name, knob.layers, networks


@torch.no_grad()
def rounded(dense: nn.Module, layer: str, bits: int) -> nn.Module:
    model = copy_model(dense)
    weight = prunable_weights(model)[layer]
    dim = output_dim(model.get_submodule(layer.rpartition(".")[0]))
    weight.copy_(round_weight(weight, bits, dim=dim).weight(weight.dtype))
    return model


def measured_damage(profile: Profile, what: str, name: str) -> list[float]:
    if what == ROUNDING:
        return [profile.rounding_damage(name, bits) for bits in BITS]
    return profile.damage(what, name)[1][1:].tolist()


def compared(spec: str, cache: Path) -> list[dict[str, Any]]:
    """Rows of one workload."""
    with PLACE.running():
        prepared = prepared_model(spec, cache)
        name = prepared.workload.name
        whole, brief = (scanned(prepared, cache / f"{name}-{form}.json", form) for form in ("whole", "brief"))
        inputs, targets = (contents(evenly_spaced(part, SCAN_EXAMPLES)) for part in calibration_data(prepared.workload))
        rows = []
        for norms in (FROZEN, MOVING):
            sites = sites_of(prepared, inputs, targets, norms)
            for what in (*GRANULARITIES, ROUNDING):
                names, measured, found = estimated(prepared, sites, what, whole)
                pairs = {estimate: (measured, guess) for estimate, guess in found.items()}
                if what != ROUNDING and norms == MOVING:
                    places = [LEVELS.index(level) for level in BRIEF_LEVELS]
                    rough = np.array([brief.damage(what, knob)[1][1:] for knob in names])
                    guess = found["second order"][:, places]
                    both = np.where(np.maximum(rough, guess) < SMALL, guess, rough)
                    pairs[BRIEF] = measured[:, places], rough
                    pairs[TOGETHER] = measured[:, places], np.maximum.accumulate(both, axis=1)
                rows += [
                    {
                        "workload": name,
                        "of": what,
                        "norms": norms,
                        "estimate": estimate,
                        "all": spearman(damage.ravel(), guess.ravel()),
                        "one level": within_levels(damage, guess),
                    }
                    for estimate, (damage, guess) in pairs.items()
                ]
    return rows


def estimated(
    prepared: PreparedModel, sites: Mapping[str, Site], what: str, whole: Profile
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """Knobs (k), the whole scan's damages (k, levels), and those of each estimate (k, levels)."""
    names: list[str] = []
    rows: dict[str, list[np.ndarray]] = {estimate: [] for estimate in ESTIMATES}
    for name, layers, networks in changes(prepared, what):
        names.append(name)
        found = [
            estimates(model, [sites[layer] for layer in layers]) | {"level alone": 32 + share}
            for share, model in networks
        ]
        for estimate, own in rows.items():
            own.append(np.maximum.accumulate([max(one[estimate], 0.0) for one in found]))
    measured = np.array([measured_damage(whole, what, name) for name in names])
    return names, measured, {estimate: np.array(own) for estimate, own in rows.items()}


def within_levels(damage: np.ndarray, guess: np.ndarray) -> float:
    """Mean over the levels of the correlation over layers; of levels at which either is constant none is defined."""
    pairs = [(one, other) for one, other in zip(damage.T, guess.T, strict=True) if np.ptp(one) and np.ptp(other)]
    return float(np.mean([spearman(one, other) for one, other in pairs])) if pairs else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--cache", type=Path, default=Path("cheap-scan-cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for spec in arguments.workloads for row in compared(spec, arguments.cache)]
    columns = ["workload", "of", "norms", "estimate", "all layers and levels", "mean of levels"]
    print(render(columns, [
        [row["workload"], row["of"], row["norms"], row["estimate"], f"{row['all']:.3f}", f"{row['one level']:.3f}"]
        for row in rows
    ]))  # fmt: skip
    least: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["of"] != ROUNDING:
            kind = row["norms"], row["estimate"]
            least[kind] = min(least.get(kind, 1.0), row["all"])
    print("\nleast correlation of pruning over all workloads:")
    for (norms, estimate), value in least.items():
        print(f"  {estimate}, {norms} norms: {value:.3f}{'' if value >= ENOUGH else f', below {ENOUGH}'}")
    print(
        json.dumps(
            {
                "rows": rows,
                "least": [[*kind, value] for kind, value in least.items()],
                "hardware": hardware(),
                "torch": version("torch"),
            }
        )
    )


if __name__ == "__main__":
    main()
