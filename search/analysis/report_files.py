"""The pruning labs' pictures as files: PNG pages, and beside each kind one JSON file with every number drawn.

Every JSON object has `version` and `picture`, which of these it is:

- `weights`: `stages`, and `layers`: name -> one histogram a stage: `counts` (bins), `edges` (bins + 1; even but for the
  outermost bins, which hold what lies far off), `zeros`, which are in no bin, and `gone`, with removed channels; these
  add up to the dense layer's weights. Where a policy rounds weights, `bits`: name -> bits in stages but the dense one.
- `shares`: `criterion`, `rows` (`pruning.analysis.granularity_damage.LayerShare`) and `means`
  (`pruning.analysis.granularity_damage.MeanShare`).
- `layout`: `layer`, its `shape`, `criterion`, `shown` (outputs and inputs of it that are drawn), `weight` (rows), and
  `masks`: one a granularity and sparsity, `mask` as rows of 0 and 1 (kept); `left_out`: granularity -> why it has none.
- `sensitivity`: `dense` accuracy and loss, and `layers`: `layer`, `parameters`, and `curves`: granularity -> lists of
  `sparsity`, `accuracy`, `loss`, `recalibrated_accuracy`, `recalibrated_loss`, the dense model first.
- `curves`: `search.analysis.pruning_curves.Curves`, with `sparsity_is`, `scaled_by` and `split`, which say how the
  points came about.

Accuracies in the last two are shares. By a metric with a unit there is also its name, `metric`, and beside each
accuracy the `value` that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruning.analysis.granularity_damage import layer_shares, mean_shares, own_masks
from pruning.analysis.histograms import layer_histograms
from pruning.analysis.weight_layout import corner, laid_out
from pruning.importance.scores import ImportanceScores
from pruning.mask_cache import MaskCache
from pruning.masks import achieved_sparsity
from pruning.modules import prunable_weights
from search.analysis.pruning_curves import ITERATIVE, Curves
from search.analysis.report_figures import curves_png, histogram_pages, layout_png, sensitivity_pages, share_pages
from search.files import write_durably
from search.metric import SHARE, Metric, with_values
from spaces.granularity import unpruned_reason
from spaces.network import Layer, Network
from spaces.sensitivity import Profile
from spaces.strict_json import nan_as_null

PICTURES_VERSION = 1
DIGITS = 6
"""Digits of a weight in a layout's JSON."""
Files = dict[str, bytes]
"""File name -> content."""


def write_files(folder: Path, files: Files) -> list[str]:
    """Write all files; returns their paths."""
    for name, content in files.items():
        write_durably(folder / name, content)
    return [str(folder / name) for name in files]


def weight_files(stages: Mapping[str, nn.Module], bits_of: Callable[[str], int] | None = None) -> Files:
    """Histograms of every layer's weights: `weights.png` and further pages, `weights.json`.

    Args:
        stages: name of each stage -> its model, the dense one first; later ones may have lost channels.
        bits_of: layer -> bits of its weights in all but the dense stage; None if no stage rounds any.
    """
    weights = [prunable_weights(model) for model in stages.values()]
    found = {name: layer_histograms([stage[name] for stage in weights]) for name in weights[0]}
    data: dict[str, Any] = {"stages": list(stages)}
    data["layers"] = {name: list(map(asdict, own)) for name, own in found.items()}
    bits = {} if bits_of is None else {name: bits_of(name) for name in found}
    if bits:
        data["bits"] = bits
    return _pages("weights", histogram_pages(found, list(stages), bits)) | _data("weights", "weights", data)


def share_files(importance: ImportanceScores, granularities: Sequence[str], sparsities: Sequence[float]) -> Files:
    """Kept importance and output errors: `shares-S.png` and further pages for every sparsity S, `shares.json`."""
    rows = layer_shares(importance, granularities, sparsities)
    means = mean_shares(rows)
    files: Files = {}
    for sparsity in sparsities:
        files |= _pages(f"shares-{sparsity:g}", share_pages(rows, means, sparsity))
    data = {"criterion": importance.criterion, "rows": list(map(asdict, rows)), "means": list(map(asdict, means))}
    return files | _data("shares", "shares", data)


def layout_files(
    importance: ImportanceScores, layer: str, granularities: Sequence[str], sparsities: Sequence[float]
) -> Files:
    """One layer's weight and masks as flat pictures: `layout-S.png` for every sparsity S, `layout.json`."""
    graph, criterion = importance.restricted_graph, importance.criterion
    chosen, weight = graph.network.by_name[layer], prunable_weights(importance.model)[layer].detach()
    left_out = {word: why for word in granularities if (why := unpruned_reason(chosen, word))}
    rankings = MaskCache(importance.model, graph, importance.calibration, importance)
    shown = _flat(weight, chosen)
    outputs, inputs = (corner(weight, chosen.output_dim).shape[dim] for dim in (chosen.output_dim, chosen.input_dim))
    note = (
        f"{outputs} of {weight.shape[chosen.output_dim]} outputs x {inputs} of {weight.shape[chosen.input_dim]} inputs"
    )
    files: Files = {}
    rows = []
    for sparsity in sparsities:
        masks = {
            word: own_masks(rankings, graph.network, chosen, word, sparsity, criterion)[layer]
            for word in granularities
            if word not in left_out
        }
        flat = {word: (_flat(mask, chosen).numpy(), achieved_sparsity(mask)) for word, mask in masks.items()}
        cell = shown.shape[0] // outputs, shown.shape[1] // inputs
        files[f"layout-{sparsity:g}.png"] = layout_png(layer, shown.float().numpy(), flat, cell, note)
        rows += [
            {"granularity": word, "sparsity": sparsity, "achieved": achieved, "mask": mask.astype(int).tolist()}
            for word, (mask, achieved) in flat.items()
        ]
    data = {
        "layer": layer,
        "shape": list(weight.shape),
        "criterion": criterion,
        "shown": [outputs, inputs],
        "weight": [[float(f"{value:.{DIGITS}g}") for value in row] for row in shown.tolist()],
        "masks": rows,
        "left_out": left_out,
    }
    return files | _data("layout", "layout", data)


def _flat(values: Tensor, layer: Layer) -> Tensor:
    return laid_out(corner(values, layer.output_dim), layer.output_dim).cpu()


def default_layer(network: Network, granularities: Sequence[str]) -> str:
    """The first layer that all these granularities can prune; otherwise the one with the most weights.

    Raises:
        ValueError: the network has no prunable layers.
    """
    if not network.prunable:
        raise ValueError("the network has no prunable layer: nothing to draw")
    for layer in network.prunable:
        if not any(unpruned_reason(layer, word) for word in granularities):
            return layer.name
    return max(network.prunable, key=lambda layer: layer.numel).name


def sensitivity_files(profile: Profile, network: Network, stem: str, draws: bool = True, unit: Metric = SHARE) -> Files:
    """Accuracy and loss against sparsity, one panel for each layer: `STEM.png` and further pages, `STEM.json`; without
    pages unless it `draws`. Accuracies are shown in the `unit`."""
    parameters = {layer.name: layer.numel for layer in network.prunable}
    curves = {
        name: {word: _curve(profile, word, name) for word, by_layer in profile.points.items() if name in by_layer}
        for name in parameters
    }
    data = {
        "examples": profile.examples,
        "dense": {"accuracy": profile.dense_accuracy, "loss": profile.dense_loss},
        "layers": [
            {"layer": name, "parameters": parameters[name], "curves": found} for name, found in curves.items() if found
        ],
    }
    if profile.rounding:
        data["rounding"] = {name: [asdict(point) for point in points] for name, points in profile.rounding.items()}
    pages = sensitivity_pages(profile, parameters, unit) if draws else []
    return _pages(stem, pages) | _data(stem, "sensitivity", data, unit)


def _curve(profile: Profile, granularity: str, layer: str) -> dict[str, list[float]]:
    points = profile.points[granularity][layer]
    return {
        "sparsity": [0.0, *(p.sparsity for p in points)],
        "accuracy": [profile.dense_accuracy, *(p.accuracy for p in points)],
        "loss": [profile.dense_loss, *(p.loss for p in points)],
        "recalibrated_accuracy": [profile.reference[1], *(p.recalibrated_accuracy for p in points)],
        "recalibrated_loss": [profile.reference[0], *(p.recalibrated_loss for p in points)],
    }


def curve_files(curves: Curves, unit: Metric = SHARE) -> Files:
    """The three curves: `curves.png` and `curves.json`, with accuracies shown in the `unit`."""
    data = {
        "split": "validation",
        "sparsity_is": "share of the weights asked to go, of the layers the policy prunes",
        "scaled_by": "one shift on the logits of all the policy's shares",
        "policy": curves.policy.to_dict(),
        "schedules": {method: schedule.essence for method, schedule in curves.schedules.items()},
        "cost": {
            "epochs": curves.epochs,
            "steps": curves.steps,
            "rounds": curves.schedules[ITERATIVE].rounds,
            "of": "each fine-tune, one-shot and iterative alike; an iterative one is cut into the rounds",
        },
        "seed": curves.seed,
        "dense": {"accuracy": curves.dense_accuracy, "loss": curves.dense_loss},
        "points": [asdict(point) for point in curves.points],
    }
    return {"curves.png": curves_png(curves, unit)} | _data("curves", "curves", data, unit)


def _pages(stem: str, pages: Sequence[bytes]) -> Files:
    """`STEM.png`, `STEM-2.png`, ..."""
    return {f"{stem}{f'-{number}' if number > 1 else ''}.png": page for number, page in enumerate(pages, start=1)}


def _data(stem: str, picture: str, data: Mapping[str, Any], unit: Metric = SHARE) -> Files:
    own = {} if unit == SHARE else {"metric": unit.name}
    record = nan_as_null({"version": PICTURES_VERSION, "picture": picture, **own, **with_values(data, unit)})
    return {f"{stem}.json": (json.dumps(record, allow_nan=False) + "\n").encode()}
