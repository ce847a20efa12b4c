"""Which groups a trial removal refuses, and how many passes it takes to find them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import plan_removal, shrink, trace_channels

WIDTH, HEADS = 12, 3


class Attention(nn.Module):
    """Self-attention whose heads are `kind`: `written` (sizes of a reshape), `scaled` (by the number of channels,
    which a removal changes) or `free` (by a number that stays)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens = x.shape[:2]
        last = WIDTH // HEADS if self.kind == "written" else -1
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, last).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1] if self.kind == "scaled" else 4)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention(kind)
        self.up, self.down = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(F.gelu(self.up(x)))


class Transformer(nn.Module):
    passes = 0

    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(WIDTH, WIDTH), nn.Sequential(*map(Block, kinds.split()))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        type(self).passes += 1
        return self.head(self.blocks(self.embed(x)).mean(1))


def traced(kinds: str):
    torch.manual_seed(0)
    model, Transformer.passes = Transformer(kinds), 0
    graph = trace_channels(model, torch.randn(2, 7, WIDTH))
    return model, graph, Transformer.passes


def test_the_passes_hardly_grow_with_the_blocks_that_do_not_run():
    passes = []
    for blocks in (2, 5):
        _, graph, count = traced(" ".join(["written"] * blocks))
        whole = [layer.name for layer in graph.network.prunable if layer.obstacle]
        assert whole == [*(f"blocks.{place}.attention.qkv.weight" for place in range(blocks)), "head.weight"]
        for place in range(blocks):
            reason = graph.network.by_name[f"blocks.{place}.attention.qkv.weight"].obstacle
            assert f"Attention 'blocks.{place}.attention' does not run with fewer of its channels: " in reason
            assert "shape '[2, 7, 3, 3, 4]' is invalid for input of size " in reason
        passes.append(count)
    assert passes[1] <= passes[0] + 6


def test_what_differs_is_tried_by_itself_and_named_with_its_hint():
    kinds = "free scaled written free scaled free free scaled"
    model, graph, count = traced(kinds)
    wrong = {f"blocks.{place}.attention.qkv.weight": kind for place, kind in enumerate(kinds.split())}
    for name, kind in wrong.items():
        obstacle = graph.network.by_name[name].obstacle
        if kind == "free":
            assert obstacle is None
        elif kind == "written":
            assert "does not run" in obstacle
        else:
            assert obstacle.startswith("removal does not equal the mask: outputs differ by ")
            place = name.removesuffix(".qkv.weight")
            assert obstacle.endswith(f"an index picks among its channels in Attention {place!r}")
    assert {f"blocks.{place}.up.weight" for place in range(8)} <= set(graph.network.removable)
    _, _, without = traced("free free written free free free free free")
    assert count - without <= 2 * 2 * (3 + 2)  # each of the three, all that differ not, and all together; twice
    x = torch.randn(2, 7, WIDTH)
    shrink(model, plan_removal(model, dict.fromkeys(graph.network.removable, 0.3), x, graph=graph))


class Loose(nn.Module):
    """A block whose first layer its owner calls; run alone on dense inputs, it would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, hidden):
        return self.second(F.relu(hidden))


class CallsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loose, self.attention, self.head = Loose(), Attention("written"), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = x + self.attention(x)
        return self.head(self.loose(self.loose.first(x)).mean(1))


def test_a_layer_that_is_called_from_outside_its_module_stays_removable():
    torch.manual_seed(0)
    network = trace_channels(CallsInside(), torch.randn(2, 7, WIDTH)).network
    assert network.by_name["loose.first.weight"].obstacle is None
    assert "does not run" in network.by_name["attention.qkv.weight"].obstacle


class Listed(nn.Module):
    """Attention whose layers are in a list, which does not run itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x):
        value = self.layers[0](x).view(*x.shape[:2], HEADS, 4)
        return self.layers[1]((value.sin() * value).flatten(2))


def test_the_module_that_is_tried_is_one_that_runs():
    torch.manual_seed(0)
    model = Transformer("free written free")
    model.blocks[0].attention = Listed()
    network = trace_channels(model, torch.randn(2, 7, WIDTH)).network
    reason = network.by_name["blocks.0.attention.layers.0.weight"].obstacle
    assert reason.startswith("Listed 'blocks.0.attention' does not run with fewer of its channels: ")
    assert network.by_name["blocks.2.attention.qkv.weight"].obstacle is None


class Either(nn.Module):
    """Two layers that may each lose channels, but not both, beside two that always may."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.ModuleList(nn.Linear(WIDTH, 8) for _ in range(4))
        self.taken, self.head = nn.ModuleList(nn.Linear(8, 4) for _ in range(4)), nn.Linear(16, 5)

    def forward(self, x):
        hidden = [makes(x) for makes in self.made]
        if hidden[0].shape[-1] + hidden[1].shape[-1] < 13:
            raise RuntimeError("too narrow")
        return self.head(torch.cat([takes(h) for takes, h in zip(self.taken, hidden, strict=True)], -1).relu()).mean(1)


def test_groups_that_fail_only_together_are_both_refused():
    torch.manual_seed(0)
    network = trace_channels(Either(), torch.randn(2, 7, WIDTH)).network
    assert {f"made.{place}.weight" for place in (2, 3)} <= set(network.removable)
    for place in (0, 1):
        reason = network.by_name[f"made.{place}.weight"].obstacle
        assert reason == "removal does not equal the mask: the new network does not run, RuntimeError: too narrow"


class OutOfMemory(Attention):
    def forward(self, x):
        if self.qkv.out_features < 3 * WIDTH:
            raise MemoryError
        return super().forward(x)


def test_lack_of_memory_in_a_module_says_nothing_of_its_channels():
    model = Transformer("written free")  # the first block ends every pass before the second runs
    model.blocks[1].attention = OutOfMemory("free")
    with pytest.raises(MemoryError):
        trace_channels(model, torch.randn(2, 7, WIDTH))


def test_the_models_own_hooks_and_modes_are_left_alone():
    model, seen = Transformer("written written").train(), []
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(1))
    trace_channels(model, torch.randn(2, 7, WIDTH))
    assert seen
    assert all(module.training for module in model.modules())
    assert len(model.blocks[1]._forward_pre_hooks) == 1
    assert not model.blocks[1].attention._forward_hooks
