"""Passes from the first changed tensor on, against whole passes, for modules of many habits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import recalibrate_
from pruning.prefix import Deviation, RecordedPass
from tests.examples.depthwise import SmallMobileNet
from tests.examples.residual import SmallResNet

GENERATOR = torch.Generator().manual_seed(5)
BATCHES = torch.randn(11, 1, 8, 8, generator=GENERATOR).split([6, 5])
LIMIT = 2**30


class Computed(TorchDispatchMode):
    """Counts the operations that are really carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator).split(".")[1])
        return operator(*args, **(kwargs or {}))


class Habits(nn.Module):
    """One convolution and norm used twice, in-place and functional steps, views, dropout, an early value used late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(12, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.first(x), inplace=True)
        half, scale = a[:, :3], a.mean()
        b = self.norm(self.shared(a)).relu_()
        half += 0.1 * b[:, :3]
        c = self.drop(self.norm(self.shared(b)))
        d = self.last(c)
        d += a * scale
        return self.head(torch.cat([d.mean((2, 3)), a.amax((2, 3))], 1))


class Branches(nn.Module):
    """Which layer runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.left, self.right, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x.flatten(1))
        y = self.left(y) if y.sum() > 0 else self.right(y).relu()
        return self.head(y) if y[0, 0] > 0 else self.head(y).tanh()


class Counting(nn.Module):
    """Calls differ by their number: in their operations, or only in a constant."""

    def __init__(self, operations: bool) -> None:
        super().__init__()
        self.one, self.two, self.calls, self.operations = nn.Linear(64, 8), nn.Linear(8, 4), 0, operations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = self.one(x.flatten(1))
        if self.operations:
            return self.two(y.relu() if self.calls % 3 else y.tanh())
        return self.two(y * self.calls)


class Reading(nn.Module):
    """Takes numbers out of a tensor behind the operations' back."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.one, self.two, self.way = nn.Linear(64, 8), nn.Linear(8, 4), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x.flatten(1))
        scale = getattr(y.abs().sum(), self.way)()
        return self.two(y) * float(scale)


def plainly(model: nn.Module) -> list[torch.Tensor]:
    return [model(batch) for batch in BATCHES]


def fitting(model: nn.Module) -> int:
    return recalibrate_(model, BATCHES)


def changed(model: nn.Module, name: str) -> nn.Module:
    candidate = copy.deepcopy(model)
    weight = candidate.get_parameter(name).data
    weight[: len(weight) // 2 + 1] *= -0.7
    return candidate


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=["vgg", "residual", "resnet", "mobilenet", Habits, Branches])
def model(request) -> nn.Module:
    torch.manual_seed(3)
    if isinstance(request.param, type):
        return request.param().eval()
    makers = {"resnet": SmallResNet, "mobilenet": SmallMobileNet}
    if request.param in makers:
        return makers[request.param]().eval()
    return copy.deepcopy(request.getfixturevalue(request.param))


@torch.no_grad()
def test_outputs_and_state_are_those_of_whole_passes(model):
    """Plain, recalibrating and plain again, for tensors changed alone, in an order that goes back too."""
    before = copy.deepcopy(model.state_dict())
    plain, fit = RecordedPass(model, plainly, LIMIT), RecordedPass(model, fitting, LIMIT)
    fitted = RecordedPass(fit.model, plainly, LIMIT)
    names = [name for name, _ in model.named_parameters()]
    some = names[:: max(1, len(names) // 6)]
    for name in [*some, some[1], some[0], some[-1]]:
        candidate, whole = changed(model, name), changed(model, name)
        outputs, differing = plain.repeat(candidate, {name})
        assert same(outputs, plainly(whole)), name
        assert differing == {name}
        _, differing = fit.repeat(candidate, {name})
        fitting(whole)
        state, expected = candidate.state_dict(), whole.state_dict()
        assert all(torch.allclose(state[n], expected[n], rtol=1e-5, atol=1e-6) for n in state), name
        assert {n for n in state if not torch.equal(state[n], fit.model.state_dict()[n])} <= differing
        assert same(fitted.repeat(candidate, differing)[0], plainly(whole)), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_nothing_before_the_changed_tensor_is_computed(vgg):
    recorded = RecordedPass(vgg, plainly, LIMIT)
    for number in (2, 5, 7):
        name = f"backbone.conv{number}.weight"
        recorded.repeat(changed(vgg, name), {name})  # what is held is brought to this layer
        with Computed() as computed:
            recorded.repeat(changed(vgg, name), {name})
        assert computed.names.count("convolution") == len(BATCHES) * (8 - number)
        assert computed.names.count("relu_") == len(BATCHES) * (8 - number)


@torch.no_grad()
def test_bringing_what_is_held_further_computes_the_dense_model_once(vgg):
    recorded = RecordedPass(vgg, plainly, LIMIT)
    names = [f"backbone.conv{number}.weight" for number in range(8)]
    with Computed() as computed:
        for name in names:
            recorded.repeat(copy.deepcopy(vgg), {name})
    assert computed.names.count("convolution") == len(BATCHES) * (8 * 9 // 2 + 7)


@torch.no_grad()
def test_what_does_not_fit_starts_at_the_beginning(vgg):
    """A limit between what the early and what the late layers need."""
    recorded = RecordedPass(vgg, plainly, 11 * 4 * 64 * 2 * 2)
    for number, convolutions in ((1, 8), (5, 3), (0, 8)):
        name = f"backbone.conv{number}.weight"
        recorded.repeat(copy.deepcopy(vgg), {name})
        with Computed() as computed:
            outputs, _ = recorded.repeat(changed(vgg, name), {name})
        assert computed.names.count("convolution") == len(BATCHES) * convolutions
        assert same(outputs, plainly(changed(vgg, name)))


@torch.no_grad()
@pytest.mark.parametrize(("operations", "told"), [(True, "relu"), (False, "mul")])
def test_other_steps_are_noticed(operations, told):
    model = Counting(operations).eval()
    recorded = RecordedPass(model, plainly, LIMIT)
    with pytest.raises(Deviation, match=told):
        for _ in range(2):
            recorded.repeat(model, {"two.weight"})


@torch.no_grad()
@pytest.mark.parametrize("way", ["tolist", "numpy", "__array__"])
def test_tensors_not_computed_cannot_be_read(way):
    model = Reading(way).eval()
    recorded = RecordedPass(model, plainly, LIMIT)
    assert same(recorded.repeat(copy.deepcopy(model), {"one.weight"})[0], plainly(model))
    with pytest.raises(RuntimeError, match="not supported for tensor subclasses"):
        recorded.repeat(model, {"two.weight"})


@torch.no_grad()
def test_errors_a_module_catches_are_noticed():
    class Caught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.late = nn.Linear(64, 8), nn.Linear(8, 4), False

        def forward(self, x):
            early = self.one(x.flatten(1))
            y = self.two(early * 2)
            try:
                return y + early[:, :4] if self.late else y
            except Exception:
                return y

    model = Caught().eval()
    recorded = RecordedPass(model, plainly, LIMIT)
    model.late = True
    with pytest.raises(Deviation, match="slice"):
        recorded.repeat(model, {"two.weight"})


@torch.no_grad()
def test_other_numbers_of_calls_are_noticed(vgg):
    batches = list(BATCHES)
    recorded = RecordedPass(vgg, lambda model: [model(batch) for batch in batches], LIMIT)
    batches.append(BATCHES[0])
    with pytest.raises(Deviation, match="more calls"):
        recorded.repeat(vgg, {"classifier.weight"})
    del batches[1:]
    with pytest.raises(Deviation, match="fewer calls"):
        recorded.repeat(vgg, {"classifier.weight"})
