"""MACs against PyTorch's own counter in training mode, against hand formulas, before and after removals."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torchvision
from networks import Net
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from pruning import measure_cost, plan_removal, shrink, trace_channels
from pruning.multiplications import count_multiplications
from spaces import PruningPolicy, footprint

old = functools.partial(pytest.mark.filterwarnings, "ignore:.*weight_norm.*:FutureWarning")
SCORES = "products of two activations, such as attention's scores"


def built(make, seed=0):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def weights(*shape):
    return nn.Parameter(torch.randn(*shape))


def tied():
    net = Net(lambda m, x: m.out(m.h(m.emb(x))), emb=nn.Embedding(50, 16), h=nn.Linear(16, 16), out=nn.Linear(16, 50))
    net.out.weight = net.emb.weight
    return net


def written(m, x):
    """Steps written into a tensor of zeros, then multiplied with itself."""
    out = torch.zeros(x.shape[0], 5, 4)
    for step in range(5):
        out[:, step] = m.a(x[:, step])
    return out.sin()


def rounded(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.a(x)


def inference(m, x):
    with torch.inference_mode():
        return m.a(x)


STEPS, IMAGE, WORDS = (2, 5, 16), (2, 3, 8, 8), (2, 7)
AS_DISPATCHED = {
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4)), IMAGE),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 3, 2, groups=4)), IMAGE),
    "padded": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), IMAGE),
    "volumes": (lambda: nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5)),
    "linear on a view": (lambda: Net(lambda m, x: m.c(x.transpose(1, 2)), c=nn.Linear(5, 7, bias=False)), STEPS),
    "twice": (lambda: Net(lambda m, x: m.c(m.c(x)), c=nn.Linear(16, 16)), STEPS),
    "tied": (tied, WORDS),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), IMAGE),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), IMAGE),
    "spectral norm by hook": (lambda: spectral_norm(nn.Conv2d(3, 8, 3)), IMAGE),
    "functional linear": (
        lambda: Net(lambda m, x: F.linear(x, F.normalize(m.fc.weight)), fc=nn.Linear(16, 40)), STEPS),
    "functional convolution": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w, stride=2, padding=1), w=weights(8, 3, 3, 3)), IMAGE),
    "matmul": (lambda: Net(lambda m, x: x @ m.w, w=weights(16, 7)), STEPS),
    "einsum": (lambda: Net(lambda m, x: torch.einsum("bti,oi->bto", x, m.w), w=weights(7, 16)), STEPS),
    "einsum over time": (lambda: Net(lambda m, x: torch.einsum("bti,st->bsi", x, m.w), w=weights(7, 5)), STEPS),
    "bmm": (lambda: Net(lambda m, x: torch.bmm(x, m.w.expand(2, -1, -1)), w=weights(16, 7)), STEPS),
    "buffer": (lambda: Net(lambda m, x: m.a(x @ m.d), a=nn.Linear(16, 4), d=nn.Buffer(torch.randn(16, 16))), STEPS),
    "low rank": (
        lambda: Net(lambda m, x: F.linear(x, m.a.weight + m.b @ m.c), a=nn.Linear(16, 8), b=weights(8, 2),
                    c=weights(2, 16)), STEPS),
    "some of the weight": (lambda: Net(lambda m, x: F.linear(x[..., :6], m.a.weight[:, :6]), a=nn.Linear(16, 8)),
                           STEPS),
    "bag of words": (lambda: Net(lambda m, x: m.a(m.e(x)), e=nn.EmbeddingBag(50, 16), a=nn.Linear(16, 4)), WORDS),
    "written in place": (lambda: Net(written, a=nn.Linear(16, 4)), STEPS),
    "autocast": (lambda: Net(rounded, a=nn.Linear(16, 8)), STEPS),
}  # fmt: skip


def example(shape):
    torch.manual_seed(1)
    return torch.randint(50, shape) if shape == WORDS else torch.randn(shape)


@pytest.mark.parametrize("name", AS_DISPATCHED)
def test_as_pytorchs_own_counter(name):
    make, shape = AS_DISPATCHED[name]
    model, x = built(make), example(shape)
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).train()(x)
    assert measure_cost(model, x).macs == counter.get_total_flops() // 2 // 2 > 0


def recurrent(kind, **options):
    return lambda: Net(lambda m, x: m.r(x)[0], r=kind(16, 12, batch_first=True, **options))


def packed(m, x):
    return m.r(rnn.pack_padded_sequence(x, [5, 3], batch_first=True))[0].data


def cross(m, x):
    return m.r(x, m.k(x[:, :3]), x[:, :3])[0]


def attention(**options):
    return nn.MultiheadAttention(16, 4, batch_first=True, **options)


BY_HAND = {
    "lstm": (recurrent(nn.LSTM), STEPS, 5 * 48 * (16 + 12)),
    "lstm in two directions": (
        recurrent(nn.LSTM, num_layers=2, bidirectional=True), STEPS, 5 * 2 * 48 * ((16 + 12) + (24 + 12))),
    "lstm with a projection": (recurrent(nn.LSTM, proj_size=6), STEPS, 5 * (48 * (16 + 6) + 6 * 12)),
    "gru": (recurrent(nn.GRU), STEPS, 5 * 36 * (16 + 12)),
    "rnn": (recurrent(nn.RNN), STEPS, 5 * 12 * (16 + 12)),
    "packed steps, 8 of two sequences": (
        lambda: Net(packed, r=nn.LSTM(16, 12, batch_first=True)), STEPS, 8 * 48 * 28 // 2),
    "cell": (lambda: Net(lambda m, x: m.r(x[:, 0])[0], r=nn.LSTMCell(16, 12)), STEPS, 48 * 28),
    "lstm under weight norm": (
        lambda: Net(lambda m, x: m.r(x)[0], r=weight_norm(nn.LSTM(16, 12, batch_first=True), "weight_ih_l0")), STEPS,
        5 * 48 * 28),
    "weight norm by hook": (lambda: weight_norm(nn.Conv2d(3, 8, 3)), IMAGE, 36 * 8 * 27),
    "attention": (lambda: Net(lambda m, x: m.r(x, x, x)[0], r=attention()), STEPS, 5 * 4 * 256),
    "attention without its weights": (
        lambda: Net(lambda m, x: m.r(x, x, x, need_weights=False)[0], r=attention()), STEPS, 5 * 4 * 256),
    "cross attention": (
        lambda: Net(cross, r=attention(), k=nn.Linear(16, 16)), STEPS, 5 * 256 * 2 + 3 * 256 * 2 + 3 * 256),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2), STEPS,
        2 * 5 * (4 * 256 + 2 * 16 * 24)),
    "deformable": (
        lambda: Net(lambda m, x: m.d(x, m.o(x)), o=nn.Conv2d(3, 18, 3, padding=1),
                    d=torchvision.ops.DeformConv2d(3, 16, 3, padding=1)), IMAGE, 64 * (18 * 27 + 16 * 27)),
    "compiled": (lambda: torch.compile(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))), STEPS, 5 * (128 + 32)),
    "compiled in part": (
        lambda: nn.Sequential(torch.compile(nn.Linear(16, 8)), nn.Linear(8, 4)), STEPS, 5 * (128 + 32)),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))), STEPS, 5 * (128 + 32)),
    "in inference mode": (lambda: Net(inference, a=nn.Linear(16, 8)), STEPS, 5 * 128),
    "half precision": (lambda: nn.Linear(16, 8).half(), STEPS, 5 * 128),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BY_HAND)
def test_as_by_hand(name, training):
    make, shape, macs = BY_HAND[name]
    model, x = built(make), example(shape)
    x = x.half() if name == "half precision" else x
    with torch.random.fork_rng():
        counted = count_multiplications(model.train(training), x)
    parameters = dict(model.named_parameters())
    assert counted.others + sum(n * parameters[name].numel() for name, n in counted.positions.items()) == macs
    assert model.training == training


def test_what_is_not_counted_is_said():
    bilinear = Net(lambda m, x: m.a(x, x), a=nn.Bilinear(16, 16, 3))
    query = Net(lambda m, x: (x.transpose(1, 2) @ (x @ m.q).unsqueeze(2)).squeeze(2), q=weights(16))
    assert count_multiplications(bilinear, torch.randn(STEPS)).uncounted == ("_trilinear of 'a.weight'",)
    assert count_multiplications(query, torch.randn(STEPS)).uncounted == ("mv of 'q'", SCORES)
    for model in (nn.Linear(16, 4), parametrizations.spectral_norm(nn.Linear(16, 4)), nn.LSTM(16, 4)):
        assert count_multiplications(model, torch.randn(STEPS)).uncounted == ()


class Unwatchable(nn.Module):
    """Its operator gives nothing where somebody watches."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(self, x):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("no")
        return self.a(x)


def test_networks_that_cannot_be_watched_run_and_say_so():
    counted = count_multiplications(Unwatchable(), torch.randn(STEPS))
    assert (counted.positions, counted.others) == ({}, 0)
    assert counted.uncounted == ("anything, as it cannot be watched: RuntimeError",)


def mixed():
    """Convolutions that can lose channels around weights that cannot: parametrised, recurrent, tied, functional."""

    def run(m, x):
        x = m.norm(m.b(m.a(x).relu())).relu()
        x = m.c(x).relu().mean(3).transpose(1, 2)
        return F.linear(m.lstm(x)[0], m.w)

    return Net(
        run, a=nn.Conv2d(3, 12, 3), b=nn.Conv2d(12, 10, 1), norm=nn.BatchNorm2d(10), w=weights(5, 6),
        c=parametrizations.weight_norm(nn.Conv2d(10, 8, 3)), lstm=nn.LSTM(8, 6, batch_first=True),
    )  # fmt: skip


def timed():
    """A product along time, between layers that lose channels: its MACs go with them, though it is no layer."""
    a, b, table = nn.Conv1d(16, 12, 1), nn.Conv1d(12, 4, 1), nn.Buffer(torch.randn(5, 7))
    return Net(lambda m, x: m.b(m.a(x).relu() @ m.table).mean(2), a=a, b=b, table=table)


@pytest.mark.parametrize("make, shape", [(mixed, IMAGE), (timed, (2, 16, 5))])
def test_planned_and_measured_before_and_after_removal(make, shape):
    """Dense counts agree to the MAC; what is measured once channels are gone is the counter's own, and no more."""
    model, x = built(make).eval(), example(shape)
    graph = trace_channels(model, x)
    assert footprint(graph.network, PruningPolicy({})) == measure_cost(model, x)
    request = dict.fromkeys(graph.network.removable, 0.25)
    small = shrink(model, plan_removal(model, request, x, graph=graph))
    planned, cost = footprint(graph.network, PruningPolicy(request, "channel")), measure_cost(small, x)
    by_layer = sum(small.get_parameter(n).numel() * p for n, p in graph.network.multiplied.items())
    assert cost.macs <= planned.macs < measure_cost(model, x).macs
    assert planned.macs == by_layer + graph.network.other_macs
    assert planned.macs - cost.macs == (0 if make is mixed else 3 * 5 * 7)
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(small).train()(x)
    recurrent = 4 * 24 * (8 + 6) if make is mixed else 0
    assert cost.macs == counter.get_total_flops() // 2 // 2 + recurrent
