"""Channels followed through what networks do with them. Each removal is held to a mask that is set here by hand, or to
tensors that are sliced here by hand, in float64."""

from __future__ import annotations

import copy
import re
import threading
import warnings

import pytest
import torch
from networks import Net, prepared
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pruning import plan_removal, shrink, trace_channels
from pruning.channels.structure import Structure, apply_structure

IMAGE, SIGNAL, TOKENS = torch.Size((2, 3, 8, 8)), torch.Size((2, 3, 16)), torch.Size((2, 9))


def pooled(run, last=8, **parts) -> Net:
    """A linear head over the mean of every channel."""
    return Net(lambda m, x: m.fc(run(m, x).flatten(2).mean(2)), **parts, fc=nn.Linear(last, 5))


def conv(inputs: int, outputs: int, kernel: int = 1, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def example(shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if shape == TOKENS:
        return torch.randint(20, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def hand_masked(model: nn.Module, kept: dict[str, tuple[int, ...]], also: dict[str, tuple[str, int]]) -> nn.Module:
    """Rows that do not stay are zero: of each layer's weight and bias, and of what `also` says leaves with a layer,
    tensor -> (layer, dimension)."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    for name in kept:
        path = name.rpartition(".")[0]
        dim = int(isinstance(model.get_submodule(path), nn.ConvTranspose2d))
        gone = torch.tensor([i for i in range(tensors[name].shape[dim]) if i not in kept[name]])
        tensors[name].data.index_fill_(dim, gone, 0)
        if f"{path}.bias" in tensors:
            tensors[f"{path}.bias"].data[gone] = 0
    for tensor, (layer, dim) in also.items():
        gone = [i for i in range(len(tensors[layer])) if i not in kept[layer]]
        tensors[tensor].data.index_fill_(dim, torch.tensor(gone), 0)
    return masked


def check(model: nn.Module, x: torch.Tensor, removable: str, also: dict | None = None) -> nn.Module:
    """These layers, and no others, can lose channels, and what is left equals the mask; returns what is left."""
    graph = trace_channels(model, x)
    reasons = {layer.name: layer.obstacle for layer in graph.network.layers if layer.obstacle}
    assert set(graph.network.removable) == {f"{name}.weight" for name in removable.split()}, reasons
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.4), x, graph=graph)
    assert not plan.skipped
    small = shrink(model, plan)
    wanted = hand_masked(model, plan.kept, also or {})(x)
    got = copy.deepcopy(small)(x)
    assert (wanted - model(x)).abs().max() > 1e-6 * wanted.abs().max()
    assert (wanted - got).abs().max() <= 1e-10 * wanted.abs().max()
    fresh = apply_structure(model, Structure.from_dict(plan.structure.to_dict()))
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(fresh(x), got)
    return small


# Splits and joins


class C2f(nn.Module):
    """The block of YOLOv8: one convolution's channels are cut in two, both go on, and all is joined."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.stem, self.first = conv(3, 8, 3), conv(8, 12)
        self.inner = nn.ModuleList(
            nn.Sequential(conv(6, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), conv(7, 6, 3)) for _ in range(2)
        )
        self.last, self.fc = conv(24, 10), nn.Linear(10, 5)

    def forward(self, x):
        parts = list(self.cut(F.relu(self.first(F.relu(self.stem(x))))))
        for inner in self.inner:
            parts.append(parts[-1] + inner(parts[-1]))
        return self.fc(F.relu(self.last(torch.cat(parts, 1))).mean((2, 3)))


HALVES = {
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split(x.shape[1] // 2, 1),
    "split with sizes": lambda x: x.split([x.shape[1] // 2] * 2, 1),
    "slices": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    "tensor_split": lambda x: x.tensor_split(2, 1),
    "narrow": lambda x: (x.narrow(1, 0, x.shape[1] // 2), x.narrow(1, x.shape[1] // 2, x.shape[1] // 2)),
    "view": lambda x: x.view(len(x), 2, -1, *x.shape[2:]).unbind(1),
}


@pytest.mark.parametrize("cut", HALVES)
def test_both_halves_of_a_convolution_go_on(cut):
    model = prepared(C2f(HALVES[cut]))
    check(model, example(IMAGE), "stem first inner.0.0 inner.0.3 inner.1.0 inner.1.3 last")


def test_the_columns_after_a_split_and_join_are_sliced_by_hand():
    model, x = prepared(C2f(HALVES["chunk"])), example(IMAGE)
    plan = plan_removal(model, dict.fromkeys(("first.weight", "inner.0.3.weight", "inner.1.3.weight"), 0.34), x)
    rows = list(plan.kept["inner.0.3.weight"])
    assert len(rows) == 4
    small = shrink(model, plan)
    assert torch.equal(small.first.weight, model.first.weight[[*rows, *(6 + row for row in rows)]])
    columns = [6 * part + row for part in range(4) for row in rows]
    assert torch.equal(small.last.weight, model.last.weight[:, columns])


@pytest.mark.parametrize("cut", [lambda x: x.split((6, 6), 1), lambda x: (x[:, :6], x[:, 6:])], ids=["split", "slices"])
def test_cuts_at_written_places_are_named_and_spare_the_rest(cut):
    network = trace_channels(prepared(C2f(cut)), example(IMAGE)).network
    assert set(network.removable) == {f"{n}.weight" for n in ("stem", "inner.0.0", "inner.1.0", "last")}
    for name in ("first", "inner.0.3", "inner.1.3"):
        assert "its 12 channels are cut at fixed places in C2f" in network.by_name[f"{name}.weight"].obstacle


def shuffled(x):
    n, channels, h, w = x.shape
    return x.view(n, 2, channels // 2, h, w).transpose(1, 2).reshape(n, channels, h, w)


def gated(x):
    value, gate = x.chunk(2, 1)
    return value * torch.sigmoid(gate)


def filled(m, x):
    left, right = F.relu(m.a(x)), F.relu(m.b(x))
    joined = torch.empty(len(x), left.shape[1] + right.shape[1], 8, 8, dtype=x.dtype)
    joined[:, : left.shape[1]] = left
    joined[:, left.shape[1] :] = right
    return m.c(joined)


def unet(m, x):
    high = F.relu(m.a(x))
    low = F.relu(m.down(high))
    return F.relu(m.c(torch.cat([m.up(low), high], 1)))


FAMILY = {
    "shuffle": (pooled(lambda m, x: m.b(shuffled(F.relu(m.a(x)))), a=conv(3, 10), b=conv(10, 8)), "a b"),
    "shuffle module": (
        pooled(lambda m, x: m.b(m.s(F.relu(m.a(x)))), a=conv(3, 10), s=nn.ChannelShuffle(2), b=conv(10, 8)),
        "a b",
    ),
    "gate": (pooled(lambda m, x: gated(m.a(x)), a=conv(3, 16)), "a"),
    "GLU": (pooled(lambda m, x: F.glu(m.a(x), 1), a=conv(3, 16)), "a"),
    "every other channel": (
        pooled(lambda m, x: m.b(F.relu(m.a(x))[:, ::2]), a=conv(3, 12), b=conv(6, 8)), "a b",
    ),
    "joined along rows": (
        pooled(lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 2)), a=conv(3, 6), b=conv(3, 6),
               c=conv(6, 8)),
        "a b c",
    ),
    "joined with the input": (pooled(lambda m, x: m.b(torch.cat([x, F.relu(m.a(x))], 1)), a=conv(3, 6), b=conv(9, 8)),
                              "a b"),
    "stacked": (pooled(lambda m, x: torch.stack([F.relu(m.a(x)), m.b(x)]).sum(0), a=conv(3, 8), b=conv(3, 8)), "a b"),
    "written into parts": (pooled(filled, a=conv(3, 5), b=conv(3, 6), c=conv(11, 8)), "a b c"),
    "flipped": (pooled(lambda m, x: m.b(F.relu(m.a(x)).flip(1)), a=conv(3, 6), b=conv(6, 8)), "a b"),
    "repeated": (pooled(lambda m, x: m.b(F.relu(m.a(x)).repeat(1, 2, 1, 1)), a=conv(3, 6), b=conv(12, 8)), "a b"),
    "transposed and skip": (
        pooled(unet, a=conv(3, 6, 3), down=nn.Conv2d(6, 9, 2, 2), up=nn.ConvTranspose2d(9, 7, 2, 2), c=conv(13, 8)),
        "a down up c",
    ),
    "grouped after a join": (
        pooled(lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1)), a=conv(3, 6), b=conv(3, 6),
               c=conv(12, 8, groups=2)),
        "a b c",
    ),
    "patches and back": (
        pooled(lambda m, x: m.b(F.fold(F.unfold(F.relu(m.a(x)), 2, stride=2), (8, 8), 2, stride=2)), a=conv(3, 5),
               b=conv(5, 8)),
        "a b",
    ),
    "patches": (
        pooled(lambda m, x: m.b(F.unfold(F.relu(m.a(x)), 2, stride=2).transpose(1, 2)).transpose(1, 2), a=conv(3, 5),
               b=nn.Linear(20, 8)),
        "a b",
    ),
    "pixel shuffle": (pooled(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 20), b=conv(5, 8)), "a b"),
    "pixel unshuffle": (pooled(lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)), a=conv(3, 5), b=conv(20, 8)), "a b"),
    "image of a vector": (
        pooled(lambda m, x: m.b(F.relu(m.a(x.mean((2, 3)))).view(len(x), -1, 4, 4)), a=nn.Linear(3, 96),
               b=conv(6, 8)),
        "a b",
    ),
    "resized": (
        pooled(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")), a=conv(3, 6), b=conv(6, 8)),
        "a b",
    ),
    "padded and pooled": (
        pooled(lambda m, x: m.b(F.avg_pool2d(F.pad(F.max_pool2d(m.a(x), 2), (1, 0, 2, 1)), 2)), a=conv(3, 6),
               b=conv(6, 8)),
        "a b",
    ),
    "einsum": (pooled(lambda m, x: torch.einsum("nchw,cd->ndhw", m.a(x), m.w), a=conv(3, 6),
                      w=nn.Parameter(torch.ones(6, 8))), "a"),
    "moved to the last dimension": (
        pooled(lambda m, x: m.b(F.gelu(m.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2), a=nn.Linear(3, 6),
               b=nn.Linear(6, 8)),
        "a b",
    ),
    "scaled weights": (pooled(lambda m, x: m.b(F.relu(F.conv2d(x, m.a.weight * 0.3, m.a.bias))), a=conv(3, 6),
                              b=conv(6, 8)), "b a"),
    "one gate for all": (pooled(lambda m, x: m.a(x) * torch.sigmoid(m.g(x)), a=conv(3, 8), g=conv(3, 1)), "a"),
    "without gradients": (pooled(lambda m, x: m.b(torch.no_grad()(m.a)(x)), a=conv(3, 6), b=conv(6, 8)), "a b"),
    "control by values": (
        pooled(lambda m, x: m.b(m.a(x)) if float(x.sum()) < 1e9 else x, a=conv(3, 6), b=conv(6, 8)), "a b",
    ),
    "instance norm": (pooled(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 6), n=nn.InstanceNorm2d(6, affine=True),
                             b=conv(6, 8)), "a b"),
    "one group a channel": (pooled(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 6), n=nn.GroupNorm(6, 6),
                                   b=conv(6, 8)), "a b"),
    "PReLU": (pooled(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 6), n=nn.PReLU(6), b=conv(6, 8)), "a b"),
    "embedding": (
        Net(lambda m, x: m.fc(F.relu(m.a(m.e(x).transpose(1, 2))).mean(2)), e=nn.Embedding(20, 6),
            a=nn.Conv1d(6, 8, 3), fc=nn.Linear(8, 5)),
        "a",
    ),
    "input of whole numbers": (
        Net(lambda m, x: m.fc(F.relu(m.a(x.double() / 20))), a=nn.Linear(9, 6), fc=nn.Linear(6, 5)), "a",
    ),
}  # fmt: skip
INPUTS = {"embedding": TOKENS, "input of whole numbers": TOKENS}
ALSO = {
    "instance norm": {"n.weight": ("a.weight", 0), "n.bias": ("a.weight", 0)},
    "one group a channel": {"n.weight": ("a.weight", 0), "n.bias": ("a.weight", 0)},
}


@pytest.mark.parametrize("name", FAMILY)
def test_removal_equals_the_mask_set_by_hand(name):
    model, removable = FAMILY[name]
    model = prepared(copy.deepcopy(model))
    check(model, example(INPUTS.get(name, IMAGE)), removable, ALSO.get(name))


# Flattening


@pytest.mark.parametrize("how", ["flatten", "reshape", "view", "contiguous"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3), (0, 3, 2, 1), (0, 3, 1, 2)])
def test_a_channels_own_columns_leave_in_whatever_order_it_is_flattened(order, how):
    flatten = {
        "flatten": lambda x: x.flatten(1), "reshape": lambda x: x.reshape(len(x), -1),
        "view": lambda x: x.contiguous().view(len(x), -1), "contiguous": lambda x: x.contiguous().flatten(start_dim=1),
    }[how]  # fmt: skip
    model = prepared(
        Net(lambda m, x: m.head(flatten(F.relu(m.b(F.relu(m.n(m.a(x)))))[:, :, :4, :3].permute(order))),
            a=conv(3, 6), n=nn.BatchNorm2d(6), b=conv(6, 5), head=nn.Linear(60, 4))
    )  # fmt: skip
    x = example(IMAGE)
    small = check(model, x, "a b", {"n.weight": ("a.weight", 0), "n.bias": ("a.weight", 0)})
    rows = [i for i in range(5) if any(torch.equal(model.b.bias[i], bias) for bias in small.b.bias)]
    assert len(rows) == 3
    places = torch.arange(60).view(1, *(torch.empty(1, 5, 4, 3).permute(order).shape[1:]))
    by_channel = places.permute([order.index(dim) for dim in range(4)])[0]  # back to (channel, row, column)
    columns = sorted(by_channel[rows].flatten().tolist())
    assert torch.equal(small.head.weight, model.head.weight[:, columns])


# Layers of other kinds


class Frozen(nn.Module):
    """A norm whose scale, shift and statistics are buffers."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        weight, bias, mean, var = (t.reshape(1, -1, 1, 1) for t in self.buffers())
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Folded(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.ones(channels), persistent=False)

    def forward(self, x):
        return x * self.scale[None, :, None, None] + self.shift.view(1, -1, 1, 1)


class Scale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return x * self.gamma


@pytest.mark.parametrize(
    ("norm", "also"),
    [
        (Frozen(6), ("weight", "bias")), (Folded(6), ("scale", "shift")), (Scale(6, 1, 1), ()), (Scale(1, 6, 1, 1), ()),
        (Scale(8, 8), ()), (Scale(6, 8, 8), ()), (nn.BatchNorm2d(6), ("weight", "bias")),
    ],
)  # fmt: skip
def test_norms_of_ones_own_leave_with_their_channels(norm, also):
    model = pooled(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 6), n=copy.deepcopy(norm), b=conv(6, 8))
    small = check(prepared(model), example(IMAGE), "a b", {f"n.{name}": ("a.weight", 0) for name in also})
    assert len(small.a.weight) == 4
    for tensor in (*small.n.parameters(), *small.n.buffers()):
        assert 6 not in tensor.shape


def test_frozen_norms_of_torchvision():
    from torchvision.ops import FrozenBatchNorm2d

    model = pooled(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 6), n=FrozenBatchNorm2d(6), b=conv(6, 8))
    check(prepared(model), example(IMAGE), "a b", {"n.weight": ("a.weight", 0), "n.bias": ("a.weight", 0)})


def test_a_position_embedding_leaves_along_its_last_dimension():
    model = Net(lambda m, x: m.fc(F.relu(m.a(x).transpose(1, 2) + m.p).mean(1)), a=nn.Conv1d(3, 6, 1),
                p=nn.Parameter(torch.ones(1, 16, 6)), fc=nn.Linear(6, 5))  # fmt: skip
    small = check(prepared(model), example(SIGNAL), "a", {"p": ("a.weight", 2)})
    assert small.p.shape == (1, 16, 4)


RECURRENT = {
    "GRU": nn.GRU(6, 7, batch_first=True), "LSTM": nn.LSTM(6, 7, batch_first=True),
    "RNN": nn.RNN(6, 7, batch_first=True),
    "two layers, both ways": nn.GRU(6, 7, num_layers=2, bidirectional=True, batch_first=True),
    "projected": nn.LSTM(6, 9, proj_size=7, batch_first=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_lets_the_channels_it_takes_go(kind):
    layer = copy.deepcopy(RECURRENT[kind])
    width = 14 if layer.bidirectional else 7
    model = Net(lambda m, x: m.fc(F.relu(m.h(m.r(F.relu(m.b(F.relu(m.a(x)))).transpose(1, 2))[0][:, -1]))),
                a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 6, 3), r=layer, h=nn.Linear(width, 9),
                fc=nn.Linear(9, 5))  # fmt: skip
    small = check(prepared(model), example(SIGNAL), "a b h")
    assert small.r.input_size == small.r.weight_ih_l0.shape[1] == 4
    small.train()(example(SIGNAL)).sum().backward()


@pytest.mark.parametrize("cell", [nn.GRUCell(6, 7), nn.LSTMCell(6, 7), nn.RNNCell(6, 7)])
def test_a_recurrent_cell_lets_the_channels_it_takes_go(cell):
    def run(m, x):
        state = m.r(F.relu(m.a(x)).mean(2))
        return m.fc(state[0] if isinstance(state, tuple) else state)

    check(prepared(Net(run, a=nn.Conv1d(3, 6, 1), r=copy.deepcopy(cell), fc=nn.Linear(7, 5))), example(SIGNAL), "a")


def blocked(model: nn.Module, x: torch.Tensor) -> dict[str, str]:
    """Layer -> obstacle, of those that are not the last."""
    network = trace_channels(model, x).network
    return {layer.name: layer.obstacle for layer in network.prunable if layer.obstacle and layer.name != "fc.weight"}


def test_a_layer_along_time_stays_whole_and_lets_channels_pass():
    model = Net(lambda m, x: m.fc(m.b(F.relu(m.t(F.relu(m.a(x))))).mean(2)), a=nn.Conv1d(3, 8, 1),
                t=nn.Linear(16, 9, bias=False), b=nn.Conv1d(8, 6, 1), fc=nn.Linear(6, 5))  # fmt: skip
    model, x = prepared(model), example(SIGNAL)
    assert set(blocked(model, x)) == {"t.weight"}
    assert "two kinds of channels" in blocked(model, x)["t.weight"]
    plan = plan_removal(model, {"a.weight": 0.4, "b.weight": 0.4}, x)
    assert (shrink(model, plan)(x) - hand_masked(model, plan.kept, {})(x)).abs().max() < 1e-10


def test_attention_lets_the_channels_that_it_takes_go():
    def run(m, x):
        x = F.relu(m.b(F.relu(m.a(x)))).transpose(1, 2)
        return m.fc(F.relu(m.h(m.r(x, x, x)[0])).mean(1))

    model = Net(run, a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 12, 3), r=nn.MultiheadAttention(12, 2, batch_first=True),
                h=nn.Linear(12, 9), fc=nn.Linear(9, 5))  # fmt: skip
    small = check(prepared(model), example(SIGNAL), "a b r.out_proj h")
    assert small.r.in_proj_weight.shape == (36, 7)


@pytest.mark.parametrize(
    "beside",
    [
        lambda x: x.roll((1, 2), (2, 3)),
        lambda x: torch.rot90(x, 1, (2, 3)),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x).abs()),
        lambda x: x.flatten(2).sort(2)[0].view_as(x),
        lambda x: x.flatten(2).topk(5, 2)[0].unsqueeze(3),
        lambda x: x.gather(3, torch.tensor([3, 0, 1]).expand(*x.shape[:3], 3)),
        lambda x: F.conv2d(x, torch.tensor([0.25, 0.5, 0.25]).double().expand(x.shape[1], 1, 1, 3), groups=x.shape[1]),
    ],
)  # fmt: skip
def test_what_acts_beside_the_channels_lets_them_pass(beside):
    model = pooled(lambda m, x: m.c(beside(F.relu(m.b(F.relu(m.a(x)))))), a=conv(3, 7), b=conv(7, 6), c=conv(6, 8))
    check(prepared(model), example(IMAGE), "a b c")


def test_packed_sequences_keep_their_channels():
    def run(m, x):
        steps = F.relu(m.a(x)).transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(steps, torch.tensor([9, 5]), batch_first=True)
        return m.fc(m.r(packed)[1][0])

    model = Net(run, a=nn.Conv1d(3, 6, 1), r=nn.LSTM(6, 7, batch_first=True), fc=nn.Linear(7, 5))
    check(prepared(model), example(SIGNAL), "a")


@pytest.mark.parametrize(
    ("middle", "parts", "reason"),
    [
        (lambda m, x: m.n(x), {"n": nn.GroupNorm(2, 6, affine=False)}, "GroupNorm 'n' normalises over the channels"),
        (lambda m, x: x.softmax(1), {}, "a softmax normalises over its channels"),
        (lambda m, x: x * x.mean(1, keepdim=True), {}, "'mean' averages over its channels"),
        (lambda m, x: x / x.std(1, keepdim=True), {}, "'std' takes the deviation over its channels"),
        (lambda m, x: x[:, torch.tensor([3, 1, 2, 0, 5, 4])], {}, "an index picks among its channels"),
        (lambda m, x: torch.fft.fft(x, dim=1).abs(), {}, "operation '_fft_"),
        (lambda m, x: x.topk(6, 1)[0], {}, "operation 'topk' is not followed"),
        (lambda m, x: x.roll(2, 1), {}, "operation 'roll' is not followed"),
        (lambda m, x: m.n(x), {"n": nn.LocalResponseNorm(2)}, "only go together"),
        (lambda m, x: x + m.t, {"t": torch.ones(1, 6, 8, 8, dtype=torch.float64)},
         "a tensor of fixed shape (1, 6, 8, 8) acts on its channels"),
    ],
)  # fmt: skip
def test_what_needs_all_channels_is_named_and_blocks_no_other(middle, parts, reason):
    model = pooled(lambda m, x: m.c(middle(m, F.relu(m.b(F.relu(m.a(x)))))), **copy.deepcopy(parts), a=conv(3, 7),
                   b=conv(7, 6), c=conv(6, 8))  # fmt: skip
    found = blocked(prepared(model), example(IMAGE))
    assert set(found) == {"b.weight"}
    assert reason in found["b.weight"]


# Weights that are computed


def deviations(w):
    w = w - w.mean((1, 2, 3), keepdim=True)
    return w / (w.std((1, 2, 3), keepdim=True) + 1e-5)


def moments(w):
    variance, mean = torch.var_mean(w, (1, 2, 3), keepdim=True, unbiased=False)
    return (w - mean) / torch.sqrt(variance + 1e-6)


STANDARDISED = {
    "deviations": deviations,
    "moments": moments,
    "a batch norm": lambda w: F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, eps=1e-6).reshape_as(w),
    "a layer norm": lambda w: F.layer_norm(w, w.shape[1:], eps=1e-6),
}


class Standardised(nn.Conv2d):
    """Every row of its weight is brought to mean 0 and deviation 1 first."""

    def forward(self, x):
        return F.conv2d(x, self.by(self.weight), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("how", STANDARDISED)
def test_rows_of_standardised_weights_leave_and_their_inputs_stay(how):
    b = Standardised(7, 6, 3, padding=1)
    b.by = STANDARDISED[how]
    model = pooled(lambda m, x: m.c(F.relu(m.n(m.b(F.relu(m.a(x)))))), a=conv(3, 7), b=b, n=nn.BatchNorm2d(6),
                   c=conv(6, 8))  # fmt: skip
    check(prepared(model), example(IMAGE), "b c", {"n.weight": ("b.weight", 0), "n.bias": ("b.weight", 0)})
    assert "computed from other tensors in Standardised 'b'" in blocked(model, example(IMAGE))["a.weight"]


class NormedHeads(nn.Module):
    """Attention that normalises queries and keys inside each head; how many heads there are follows from the width."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.fc = nn.Linear(3, 36), nn.Linear(12, 6), nn.Linear(6, 5)
        self.q, self.k = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x):
        q, k, v = self.qkv(x.transpose(1, 2)).view(len(x), 16, 3, -1, 4).permute(2, 0, 3, 1, 4)
        taken = F.scaled_dot_product_attention(self.q(q), self.k(k), v)
        return self.fc(F.relu(self.out(taken.transpose(1, 2).flatten(2))).mean(1))


def test_heads_leave_although_each_is_normalised_in_itself():
    small = check(prepared(NormedHeads()), example(SIGNAL), "qkv out")
    assert small.qkv.out_features == 24  # one of three heads


class ClassToken(nn.Module):
    """The start of a vision transformer: a token of its own, then positions that differ from token to token."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv1d(3, 6, 1), nn.Linear(6, 5)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 17, 6))
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.a(x).transpose(1, 2)], 1) + self.positions
        return self.fc((x + self.down(F.gelu(self.up(self.norm(x)))))[:, 0])


def test_channels_leave_through_a_layer_norm_behind_a_class_token():
    also = {"token": ("a.weight", 2), "positions": ("a.weight", 2)}
    small = check(prepared(ClassToken()), example(SIGNAL), "a up down", also)
    assert (small.positions.shape, len(small.norm.weight), small.norm.dense_width) == ((1, 17, 4), 4, 6)


def test_a_layer_norm_without_a_scale_is_named_behind_a_class_token():
    model = ClassToken()
    model.norm = nn.LayerNorm(6, elementwise_affine=False)
    found = blocked(prepared(model), example(SIGNAL))
    assert found.keys() == {"a.weight", "down.weight"}
    assert set(found.values()) == {"LayerNorm 'norm' normalises over the channels"}


class Mixer(nn.Module):
    """A block of MLP-Mixer: one MLP over tokens, one over channels."""

    def __init__(self, tokens, width):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.first, self.second = nn.Linear(tokens, 10), nn.Linear(10, tokens)
        self.up, self.down = nn.Linear(width, 11), nn.Linear(11, width)

    def forward(self, x):
        x = x + self.second(F.gelu(self.first(self.before(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.between(x))))


def test_hidden_units_of_mixers_leave_along_tokens_and_along_channels():
    def run(m, x):
        return m.fc(m.n(m.c(m.b(m.a(x).flatten(2).transpose(1, 2)))).mean(1))

    model = Net(run, a=nn.Conv2d(3, 6, 4, 4), b=Mixer(4, 6), c=Mixer(4, 6), n=nn.LayerNorm(6), fc=nn.Linear(6, 5))
    check(prepared(model), example(IMAGE), "b.first b.up c.first c.up")
    reason = "numbers that differ along another dimension are added to its channels in Linear 'b.first'"
    assert blocked(model, example(IMAGE))["a.weight"] == reason


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)  # fmt: skip
def test_layers_that_compute_their_weight_spare_the_others(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = norm(nn.Conv1d(8, 8, 3))
    model = Net(lambda m, x: m.fc(m.d(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))).mean(2)), a=nn.Conv1d(3, 7, 1),
                b=nn.Conv1d(7, 8, 1), c=wrapped, d=nn.Conv1d(8, 6, 1), fc=nn.Linear(6, 5)).double().eval()  # fmt: skip
    x = example(SIGNAL)
    found = blocked(model, x)
    assert set(found) == {"b.weight"}
    assert "computed from other tensors" in found["b.weight"] or "of fixed size" in found["b.weight"]
    plan = plan_removal(model, {"a.weight": 0.4, "d.weight": 0.4}, x)
    with torch.no_grad():
        wanted = plan_by_hand(model, plan.kept)(x)
        assert (shrink(model, plan)(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def plan_by_hand(model: nn.Module, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    """The model itself, with rows zeroed; such layers cannot be copied plainly."""
    tensors = dict(model.named_parameters())
    for name, rows in kept.items():
        gone = [i for i in range(len(tensors[name])) if i not in rows]
        tensors[name].data[gone] = 0
        tensors[name.replace("weight", "bias")].data[gone] = 0
    return model


# What networks hold besides tensors


class Keeper(nn.Module):
    """Keeps activations, a table, a generator, a lock, and calls its parts by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(6, 8), nn.Linear(8, 5)
        self.seen, self.maps, self.table = None, [], None
        self.numbers, self.lock, self.draws = (n for n in range(9)), threading.Lock(), torch.Generator()

    def forward(self, x):
        x = F.relu(self.a(input=x))
        self.seen, self.maps = x, [{"first": x}]
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return self.fc(F.relu(self.b(input=x * self.table)).mean((2, 3)))


def test_a_network_that_keeps_things_is_analysed_and_stays_as_it_is():
    model, x = Keeper().double().eval(), example(IMAGE)
    model(x)
    kept, table, numbers = model.seen, model.table, model.numbers
    graph = trace_channels(model, x)
    assert graph.network.removable == ("a.weight", "b.weight")
    plan = plan_removal(model, {"a.weight": 0.4, "b.weight": 0.4}, x, graph=graph)
    small = shrink(model, plan)
    assert model.seen is kept and kept.grad_fn is not None
    assert model.table is table and model.numbers is numbers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (small(x) - plan_by_hand(model, plan.kept)(x)).abs().max() < 1e-12


class ExtraState(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def renamed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model._register_state_dict_hook(lambda module, state, *_: state.update({"old.weight": state.pop("0.weight")}))
    return model


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: nn.Sequential(ExtraState(3, 4)), "state dict entry '0._extra_state' is a dict, no tensor"),
        (renamed, "state dict entry 'old.weight' is no parameter or buffer"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "LazyLinear '0' has no weight before its first batch"),
        (lambda: nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.Linear(4, 2))), "'1' is scripted or traced"),
        (lambda: torch.jit.trace(nn.Linear(3, 4), torch.ones(2, 3)), "the network is scripted or traced"),
        (lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}),
         "state dict entry '0._packed_params.dtype' is a dtype, no tensor"),
        (lambda: nn.Sequential(nn.Linear(3, 4).to(torch.complex64)), "'0.weight' has type torch.complex64"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_stored_or_followed_are_refused_in_one_line(build, named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(ValueError, match=re.escape(named)) as raised:
        trace_channels(model, torch.ones(2, 3))
    assert "\n" not in str(raised.value)


class Refuses(nn.Module):
    """Lacks memory, but only for fewer than 6 channels."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if x.shape[1] < 6:
            raise self.error
        return x


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory")],
)  # fmt: skip
def test_lack_of_memory_is_no_mismatch(error):
    model = pooled(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 6), n=Refuses(error), b=conv(6, 8))
    with pytest.raises(type(error)):
        trace_channels(model, torch.randn(IMAGE))


def dense_expert(m, x):
    """Examples go to the expert whose number a rule gives: here all of them to the first."""
    chosen = torch.zeros(len(x), dtype=torch.long)
    out = torch.zeros(len(x), 8, *x.shape[2:])
    for number, expert in enumerate((m.one, m.other)):
        if (chosen == number).any():
            out = out + expert(m.a(x))
    return m.b(out)


def guarded(m, x):
    found = m.a(x)
    if torch.isinf(found).any():
        found = found.clamp(max=6e4)
    return m.b(found)


@pytest.mark.parametrize("run", [dense_expert, guarded])
def test_networks_may_ask_what_their_numbers_are(run):
    torch.manual_seed(0)
    model = pooled(run, a=conv(3, 8), one=conv(8, 8), other=conv(8, 8), b=conv(8, 8))
    assert {"a.weight", "b.weight"} <= set(trace_channels(model, torch.randn(IMAGE)).network.removable)
