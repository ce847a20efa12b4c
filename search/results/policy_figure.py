"""The picture of one policy: what goes of every layer, in which granularity, and how many bits a value has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from search.results.figures import COLOURS, LIGHT_GREY, literal, new_figure, shorts
from spaces.policy import PruningPolicy

if TYPE_CHECKING:
    from search.results.picture import Picture

WIDTH, ROW, AROUND = 8.0, 0.21, 1.7
"""Inches: of the figure, of a layer's row, and of what stands above and below the rows."""
TALL = 24
"""More layers than that have the ticks of their axes above them too."""
HATCHES = {"channel": "", "fine-grained": "", "vector": "////", "kernel": "xxxx"}
"""Granularity -> pattern of its bars, which tells those apart without colours that a policy may mix; N:M has dots."""
BAR, HALF = 0.72, 0.36
"""Height of a bar, a share of its row; of each where a layer has two."""
CHANNEL = "channel"


def policy_figure(
    policy: PruningPolicy,
    layers: Sequence[str],
    title: str,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> Picture:
    """Layers from top to bottom in the order of the network: a bar for the share removed, coloured by granularity, and
    beside it the bits of a stored value. A layer with a removal and masks has two bars, the removal's above.

    Args:
        layers: the prunable ones; those that the policy asks nothing of stay whole, and are shown so.
        title: what the policy is, in a line.
        shares: layer -> its share of the network's parameters, 0 to 1, for a third panel; left out without.
    """
    count = len(layers)
    ratios = [5.0, 1.7, 1.6] if shares else [5.0, 1.7]
    figure, panels = new_figure(
        WIDTH, AROUND + ROW * max(count, 3), columns=len(ratios), sharey=True, width_ratios=ratios
    )
    _removed(panels[0], policy, layers)
    _bits(panels[1], policy, layers)
    if shares:
        panels[2].barh(range(count), [100 * shares.get(name, 0.0) for name in layers], BAR, color="0.55")
        panels[2].set_xlabel("parameters, %")
    for axes in panels:
        axes.grid(axis="x", color=LIGHT_GREY, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.label.set_fontsize(9)
        if count > TALL:
            axes.tick_params(top=True, labeltop=True)
    panels[0].set_yticks(range(count), list(shorts(layers).values()), fontsize=9)
    panels[0].set_ylim(count - 0.4, -0.6)
    figure.suptitle(literal(title), fontsize=11)
    twofold = any(policy.removal.get(name) and policy.sparsity.get(name) for name in layers)
    _legend(figure, panels[0], "granularity" + (": channels go first, masks act on what stays" if twofold else ""))
    return figure


def _removed(axes: Any, policy: PruningPolicy, layers: Sequence[str]) -> None:
    """The panel of shares removed; its bars have their granularity as label."""
    for row, name in enumerate(layers):
        share, removal = policy.sparsity.get(name, 0.0), policy.removal.get(name, 0.0)
        both = share > 0 and removal > 0
        if removal > 0:
            _bar(axes, row - HALF / 2 if both else row, removal, CHANNEL, HALF if both else BAR)
        if share > 0:
            _bar(axes, row + HALF / 2 if both else row, share, policy.granularity_of(name), HALF if both else BAR)
        if not (share or removal):
            axes.text(0.8, row, "whole", va="center", fontsize=8, color="0.45")
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("sparsity, % of the layer's units removed")


def _bar(axes: Any, row: float, share: float, granularity: str, height: float) -> None:
    axes.barh(
        row, 100 * share, height, color=COLOURS.get(granularity, "grey"), edgecolor="white", linewidth=0.3,
        hatch=HATCHES.get(granularity, "...."), label=granularity,
    )  # fmt: skip
    percent = f"{100 * share:.0f}"
    if percent in ("0", "100"):  # neither nothing nor all of a layer goes
        percent = f"{100 * share:.3g}"
    axes.text(100 * share + 0.8, row, percent, va="center", fontsize=8 if height == BAR else 7)


def _bits(axes: Any, policy: PruningPolicy, layers: Sequence[str]) -> None:
    """The panel of bits, a column for each number that is used, from few to many."""
    used = sorted({policy.bits_of(name) for name in layers})
    places = {bits: place for place, bits in enumerate(used)}
    axes.scatter([places[policy.bits_of(name)] for name in layers], range(len(layers)), s=22, color="0.2", zorder=3)
    axes.set_xticks(range(len(used)), [str(bits) for bits in used])
    axes.set_xlim(-0.7, len(used) - 0.3)
    axes.set_xlabel("bits of a value")


def _legend(figure: Picture, axes: Any, title: str) -> None:
    """Granularities that are used, below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(
            named.values(), named, loc="outside lower center", ncols=min(len(named), 5), frameon=False, fontsize=9,
            title=title, title_fontsize=9,
        )  # fmt: skip
