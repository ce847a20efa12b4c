"""Norms over channels, attention, and sizes that modules hold: each removal is held to a mask that is set here by hand,
in float64."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from networks import Net, prepared
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d

from pruning import plan_removal, shrink, trace_channels
from pruning.channels.narrow_attention import NarrowMultiheadAttention
from pruning.channels.narrow_norms import NarrowLayerNorm
from pruning.channels.structure import Structure, apply_structure
from pruning.cost import measure_cost
from spaces.cost.footprint import footprint
from spaces.policy import PruningPolicy

TOKENS, IMAGES = torch.Size((2, 7, 5)), torch.Size((2, 3, 16, 16))


def example(shape: torch.Size, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hand_masked(model: nn.Module, kept: dict[str, tuple[int, ...]], also: dict[str, tuple[str, int]]) -> nn.Module:
    """Rows that do not stay are zero: of each tensor named and of the bias beside it, and of what `also` says leaves
    with a layer, tensor -> (layer, dimension)."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for name, rows in kept.items():
            gone = torch.tensor(sorted(set(range(len(tensors[name]))) - set(rows)))
            tensors[name][gone] = 0
            if (bias := tensors.get(f"{name.rpartition('.')[0]}.bias")) is not None:
                bias[gone] = 0
        for name, (layer, dim) in also.items():
            gone = torch.tensor(sorted(set(range(tensors[name].shape[dim])) - set(kept[f"{layer}.weight"])))
            tensors[name].index_fill_(dim, gone, 0)
    return masked


def check(model: nn.Module, x: torch.Tensor, whole: str = "", also: dict | None = None, share: float = 0.4):
    """All but these layers and the last can lose channels, and what is left equals the mask on other inputs too;
    returns what is left."""
    graph = trace_channels(model, x)
    network = graph.network
    reasons = {layer.name.removesuffix(".weight"): layer.obstacle for layer in network.prunable if layer.obstacle}
    last = network.prunable[-1].name.removesuffix(".weight")
    assert set(reasons) == {*whole.split(), last}, reasons
    assert reasons[last] == "its outputs are the network's outputs"
    plan = plan_removal(model, dict.fromkeys(network.removable, share), x, graph=graph)
    assert not plan.skipped
    small, other = shrink(model, plan), example(x.shape, 2)
    wanted, got = hand_masked(model, plan.kept, also or {})(other), copy.deepcopy(small)(other)
    assert (wanted - model(other)).abs().max() > 1e-6 * wanted.abs().max()
    assert (wanted - got).abs().max() <= 1e-10 * wanted.abs().max()
    fresh = apply_structure(model, Structure.from_dict(json.loads(json.dumps(plan.structure.to_dict()))))
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert str(fresh) == str(small)
    assert torch.equal(fresh(other), got)
    small.train()(other).sum().backward()
    policy = PruningPolicy(dict.fromkeys(network.removable, share), granularity="channel")
    foretold, cost = footprint(network, policy), measure_cost(small, x)
    assert (foretold.parameters, foretold.macs) == (cost.parameters, cost.macs)
    return small.eval()


# Norms over channels


class Pooled(nn.Module):
    """A convolution, a norm, another convolution, and the mean of each channel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.b, self.fc = nn.Conv2d(3, 12, 3), norm, nn.Conv2d(12, 7, 1), nn.Linear(7, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.gelu(self.n(F.relu(self.a(x)))))).mean((2, 3)))


class ChannelsLast(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OwnForward(nn.LayerNorm):
    """Computes something else than a layer norm."""

    def forward(self, x):
        return super().forward(x) + 1


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12))

    def forward(self, x):
        return F.layer_norm(x, (12,), self.scale, self.shift)


NORMS = {
    "layer": lambda: ChannelsLast(nn.LayerNorm(12)),
    "layer without a shift": lambda: ChannelsLast(nn.LayerNorm(12, bias=False)),
    "layer of images": lambda: LayerNorm2d(12, eps=0.3),
    "root mean square": lambda: ChannelsLast(nn.RMSNorm(12)),
    "root mean square with eps": lambda: ChannelsLast(nn.RMSNorm(12, eps=0.3)),
    "one group": lambda: nn.GroupNorm(1, 12),
    "three groups": lambda: nn.GroupNorm(3, 12, eps=0.3),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_over_channels_goes_on_counting_those_it_lost(name):
    small = check(prepared(Pooled(NORMS[name]())), example(IMAGES))
    norm = next(module for module in small.modules() if hasattr(module, "dense_width"))
    assert (len(norm.weight), norm.dense_width) == (6 if name == "three groups" else 7, 12)
    restored, x = copy.deepcopy(small), example(IMAGES)
    assert torch.equal(restored(x), small(x))


def test_groups_lose_channels_alike():
    network = trace_channels(prepared(Pooled(nn.GroupNorm(3, 12))), example(IMAGES)).network
    assert network.groups[network.by_name["a.weight"].channel_group].units == 4


@pytest.mark.parametrize(
    ("norm", "label"),
    [
        (lambda: ChannelsLast(nn.LayerNorm(12, elementwise_affine=False)), "LayerNorm 'n.norm'"),
        (lambda: nn.GroupNorm(3, 12, affine=False), "GroupNorm 'n'"),
        (lambda: ChannelsLast(OwnForward(12)), "OwnForward 'n.norm'"),
        (lambda: ChannelsLast(Functional()), "Functional 'n.norm'"),
        (lambda: nn.LayerNorm((12, 14, 14)), "LayerNorm 'n'"),
    ],
)
def test_a_norm_that_cannot_count_them_is_named(norm, label):
    network = trace_channels(prepared(Pooled(norm())), example(IMAGES)).network
    assert network.by_name["a.weight"].obstacle == f"{label} normalises over the channels"
    assert network.by_name["b.weight"].obstacle is None


def test_a_norm_that_lost_channels_can_lose_more():
    model, x = prepared(Pooled(LayerNorm2d(12))), example(IMAGES)
    small = shrink(model, plan_removal(model, {"a.weight": 0.25}, x))
    plan = plan_removal(small, {"a.weight": 0.34}, x)
    smaller = shrink(small, plan)
    assert (len(smaller.n.weight), smaller.n.dense_width) == (6, 12)
    wanted = hand_masked(small, plan.kept, {})(x)
    assert (smaller(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_norm_is_precise_in_half_precision(dtype):
    norm = nn.LayerNorm(12)
    narrow = apply_structure(norm, Structure({"weight": {0: (0, 2, 5)}, "bias": {0: (0, 2, 5)}}))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 300
    assert isinstance(narrow, NarrowLayerNorm)
    got = narrow.to(dtype)(x.to(dtype))
    wanted = norm(F.pad(x.to(dtype).float(), (0, 9)))[:, :3]
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=1e-2, atol=1e-2)


# Attention


class Block(nn.Module):
    """A block of a transformer around any attention."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.before, self.attention, self.between = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    def __init__(self, kind: type[nn.Module], width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.Sequential(*(Block(width, kind(width, heads)) for _ in range(2)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        return self.fc(self.norm(self.blocks(self.embed(x))).mean(1))


class Fused(nn.Module):
    """One product for queries, keys and values; the width of the heads is that of the input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))


class FusedFree(Fused):
    """The same with a width of its own, and PyTorch's attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.inner = width

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.inner))


class Apart(nn.Module):
    """Three products, and names as in libraries of language models."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)

    def _heads(self, x):
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def forward(self, x):
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        shares = nn.functional.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.attention_head_size), -1)
        mixed = (shares @ v).transpose(1, 2).contiguous()
        return self.dense(mixed.view(*mixed.shape[:2], self.all_head_size))


class ApartFused(Apart):
    """The same with PyTorch's attention and heads whose number nothing holds."""

    def _heads(self, x):
        return x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)

    def forward(self, x):
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        return self.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attention(nn.MultiheadAttention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class Library(nn.Module):
    """PyTorch's own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def units(model: nn.Module, layer: str, x: torch.Tensor) -> int:
    network = trace_channels(model, x).network
    return network.groups[network.by_name[f"{layer}.weight"].channel_group].units


@pytest.mark.parametrize(
    ("kind", "layer", "count"),
    [
        (FusedFree, "blocks.0.attention.qkv", 3), (Apart, "blocks.1.attention.key", 3),
        (ApartFused, "blocks.0.attention.value", 3), (Library, "blocks.0.attention.inner.out_proj", 12),
        (FusedFree, "embed", 12), (Apart, "embed", 12), (Library, "embed", 12),
    ],
)  # fmt: skip
def test_heads_leave_apart_from_the_channels_between_blocks(kind, layer, count):
    model, x = prepared(Transformer(kind)), example(TOKENS)
    small = check(model, x)
    assert units(model, layer, x) == count
    assert small.embed.out_features == 7
    attention = small.blocks[0].attention
    if hasattr(attention, "num_heads"):
        assert (attention.num_heads, attention.inner, attention.qkv.weight.shape) == (2, 8, (24, 7))
    elif kind is Apart:
        assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (2, 8, 4)
    assert (model.blocks[0].attention.__dict__.get("num_heads", 3)) == 3


def test_heads_whose_width_is_taken_from_the_input_leave_with_their_share_of_it():
    model, x = prepared(Transformer(Fused)), example(TOKENS)
    small = check(model, x)
    assert units(model, "embed", x) == units(model, "blocks.1.attention.qkv", x) == 3
    assert small.embed.out_features == 8
    assert [block.attention.num_heads for block in small.blocks] == [2, 2]


def test_attention_of_a_class_of_its_own_is_named():
    network = trace_channels(prepared(Transformer(Attention)), example(TOKENS)).network
    assert network.by_name["embed.weight"].obstacle == "Attention 'blocks.0.attention' is not handled"
    assert network.by_name["blocks.0.up.weight"].obstacle is None


def hidden(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3


CALLS = {
    "weights": (lambda m, x, y: m(x, x, x), {}),
    "weights of each head": (lambda m, x, y: m(x, x, x, average_attn_weights=False), {}),
    "no weights": (lambda m, x, y: m(x, x, x, need_weights=False), {}),
    "one mask": (lambda m, x, y: m(x, x, x, attn_mask=hidden(7, 7)), {}),
    "numbers as a mask": (lambda m, x, y: m(x, x, x, attn_mask=hidden(7, 7).double() - 2, need_weights=False), {}),
    "a mask for each head": (lambda m, x, y: m(x, x, x, attn_mask=hidden(6, 7, 7)), {}),
    "padding": (lambda m, x, y: m(x, x, x, key_padding_mask=hidden(2, 7), need_weights=False), {}),
    "padding and a mask": (lambda m, x, y: m(x, x, x, hidden(2, 7), attn_mask=hidden(7, 7)), {}),
    "from the past": (
        lambda m, x, y: m(x, x, x, attn_mask=torch.ones(7, 7).triu(1).bool(), is_causal=True, need_weights=False), {},
    ),
    "other keys": (lambda m, x, y: m(x, y, y), {}),
    "keys and values apart": (lambda m, x, y: m(x, y, y.flip(0), need_weights=False), {"bias": False}),
    "one example": (lambda m, x, y: m(x[0], x[0], x[0]), {}),
    "one example and a mask": (lambda m, x, y: m(x[0], y[0], y[0], attn_mask=hidden(3, 7, 4)), {}),
    "time first": (lambda m, x, y: m(x, x.flip(1), x.flip(1)), {"batch_first": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_narrow_attention_is_called_as_pytorchs(name):
    """Against PyTorch's own with the channels that went set to zero."""
    run, options = CALLS[name]
    dense = prepared(nn.MultiheadAttention(12, 3, **{"batch_first": True, **options}))
    kept, gone = [0, 1, 3, 4, 6, 7, 10], [2, 5, 8, 9, 11]
    narrow = apply_structure(dense, Structure({"in_proj_weight": {1: tuple(kept)}}))
    assert isinstance(narrow, NarrowMultiheadAttention)
    x, y = example((2, 7, 12)), example((2, 4, 12), 2)
    masked = [t.index_fill(-1, torch.tensor(gone), 0) for t in (x, y)]
    with torch.no_grad():
        wanted, got = run(dense, *masked), run(narrow, x[..., kept], y[..., kept])
    assert (wanted[1] is None) == (got[1] is None)
    for one, other in zip(wanted, got, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_an_encoder_layer_does_not_compute_narrow_attention_by_itself():
    layer = nn.TransformerEncoderLayer(12, 2, 9, batch_first=True)
    model = Net(lambda m, x: m.fc(m.t(m.a(x)).mean(1)), a=nn.Linear(5, 12), t=layer, fc=nn.Linear(12, 4))
    small = check(prepared(model), example(TOKENS))
    with torch.no_grad():
        assert torch.allclose(small(example(TOKENS)), small.requires_grad_()(example(TOKENS)))


def test_dropout_in_narrow_attention_acts_in_training_alone():
    dense = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    narrow = apply_structure(dense, Structure({"in_proj_weight": {1: (0, 1, 4)}}))
    x = torch.randn(2, 7, 3)
    for need in (True, False):
        torch.manual_seed(0)
        first, second = (narrow.train()(x, x, x, need_weights=need)[0] for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (narrow.eval()(x, x, x, need_weights=need)[0] for _ in range(2))
        assert torch.equal(first, second)


# Networks


def test_convnext():
    settings = [CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 2)]
    check(prepared(ConvNeXt(settings, num_classes=4)), example(IMAGES))


def test_vision_transformer():
    model = prepared(VisionTransformer(16, 4, 2, 3, 12, 20, num_classes=4))
    also = {"class_token": ("conv_proj", 2), "encoder.pos_embedding": ("conv_proj", 2)}
    small = check(model, example(IMAGES), also=also)
    assert (model.hidden_dim, small.hidden_dim) == (12, 7)


@pytest.mark.parametrize(("width", "heads", "window"), [(12, 3, 2), (32, 2, 4)])
def test_swin_transformer(width, heads, window):
    """Also where as many channels come in as a window has positions, times the heads."""
    sizes = [2, 2], width, [2, 2], [heads, 2 * heads], [window, window], 2.0
    model = prepared(SwinTransformer(*sizes, stochastic_depth_prob=0.0, num_classes=4))
    small = check(model, example(torch.Size((2, 3, 12, 12))))
    assert small.features[1][0].attn.num_heads == heads - 1
    assert small.features[1][0].attn.relative_position_bias_table.shape == ((2 * window - 1) ** 2, heads - 1)


# Sizes that modules hold


class Halves(nn.Module):
    """A block that holds the width of the halves it splits channels into."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c, self.between = width, nn.Identity()
        self.first, self.inner, self.last = (nn.Conv2d(3, 2 * width, 1), nn.Conv2d(width, width, 1),
                                             nn.Conv2d(3 * width, 8, 1))  # fmt: skip
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        parts = list(F.relu(self.first(x)).split((self.c, self.c), 1))
        parts[0] = self.between(parts[0])
        parts.append(F.relu(self.inner(parts[-1])))
        return self.fc(F.relu(self.last(torch.cat(parts, 1))).mean((2, 3)))


def test_the_width_of_parts_is_told_to_the_module_that_holds_it():
    model = prepared(Halves(5))
    small = check(model, example(IMAGES))
    assert (model.c, small.c, small.first.out_channels, small.last.in_channels) == (5, 3, 6, 9)


def test_a_size_that_does_not_help_is_left_alone():
    """The width of the halves is held, but a sum of fixed shape needs it too."""
    model = prepared(Halves(5))
    model.between.register_forward_hook(lambda module, inputs, output: output + torch.ones(1, 5, 1, 1))
    graph = trace_channels(model, example(IMAGES))
    assert graph.network.removable == ("inner.weight", "last.weight")
    obstacle = graph.network.by_name["first.weight"].obstacle
    assert "The size of tensor a (4) must match the size of tensor b (5)" in obstacle
    assert ("c", 0) not in graph.owners


@pytest.mark.parametrize("name", ["c", "inner.weigth", "first", "missing.c"])
def test_a_structure_names_a_tensor_or_a_whole_number(name):
    if name == "c":
        assert apply_structure(Halves(5), Structure({"c": {0: (0, 4)}})).c == 2
        with pytest.raises(ValueError, match="no index 5 in dimension 0: the last is 4"):
            apply_structure(Halves(5), Structure({"c": {0: (0, 5)}}))
        with pytest.raises(ValueError, match="has no dimension 1"):
            apply_structure(Halves(5), Structure({"c": {1: (0,)}}))
    else:
        with pytest.raises(ValueError, match="unknown tensor"):
            apply_structure(Halves(5), Structure({name: {0: (0,)}}))
