"""Channels chosen by the next layer's outputs, against networks with those channels really set to zero."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from pruning import Calibration, ImportanceScores, plan_removal, refit_next_layers, shrink, trace_channels
from pruning.importance.reconstruction import _ridge, reconstruction_obstacle
from pruning.importance.scores import defined_groups


class Chain(nn.Module):
    """Two convolutions, flattened into a linear layer: 2 x 2 columns a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(self.first(x).relu())).relu().flatten(1))


@pytest.fixture
def chain() -> tuple[nn.Module, Calibration]:
    torch.manual_seed(3)
    model = Chain()
    model.norm.running_mean.normal_()
    return model.eval(), Calibration(torch.randn(7, 1, 6, 6), torch.zeros(7))


def outputs_of(model: nn.Module, layer: str, inputs: torch.Tensor, without: tuple[int, ...] = ()) -> torch.Tensor:
    """The layer's outputs with these channels of what it takes in set to zero."""
    seen = []

    def cut(module: nn.Module, taken: tuple[torch.Tensor, ...]) -> torch.Tensor:
        cleared = taken[0].clone()
        of_channel = cleared.reshape(len(cleared), 4, -1) if isinstance(module, nn.Linear) else cleared
        of_channel[:, list(without)] = 0
        return of_channel.reshape(taken[0].shape)

    module = model.get_submodule(layer)
    hooks = module.register_forward_pre_hook(cut), module.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize(("number", "reader", "units"), [(0, "second", 6), (1, "head", 4)])
class TestOrder:
    def test_every_step_is_the_least_damaging_one(self, chain, number, reader, units):
        """Greedy by brute force: every candidate's channels are set to zero in the running network."""
        model, calibration = chain
        graph = trace_channels(model, calibration.inputs[:2])
        scores = ImportanceScores(model, "reconstruction", graph, calibration).group(number)
        assert sorted(scores.tolist()) == list(range(1, units + 1))
        whole = outputs_of(model, reader, calibration.inputs)
        gone: tuple[int, ...] = ()
        for unit in np.argsort(scores):
            error = {
                c: float((whole - outputs_of(model, reader, calibration.inputs, (*gone, c))).square().sum())
                for c in range(units)
                if c not in gone
            }
            assert error[unit] == min(error.values())
            gone = (*gone, int(unit))

    def test_one_channel_is_the_best_of_all(self, chain, number, reader, units):
        model, calibration = chain
        graph = trace_channels(model, calibration.inputs[:2])
        first = int(np.argmin(ImportanceScores(model, "reconstruction", graph, calibration).group(number)))
        whole = outputs_of(model, reader, calibration.inputs)
        errors = [
            float((whole - outputs_of(model, reader, calibration.inputs, c)).square().sum())
            for c in combinations(range(units), 1)
        ]
        assert first == int(np.argmin(errors))


class Concatenated(nn.Module):
    """Two branches of 3 and 5 channels read side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 5, 3)
        self.head = nn.Conv2d(8, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1).relu())


def test_a_layer_that_reads_two_groups_side_by_side_judges_each_by_its_own_columns():
    torch.manual_seed(0)
    model, calibration = Concatenated(), Calibration(torch.randn(9, 1, 6, 6), torch.zeros(9))
    scores = ImportanceScores(model, "reconstruction", trace_channels(model, calibration.inputs[:2]), calibration)
    whole = outputs_of(model, "head", calibration.inputs)
    for number, columns in ((0, range(3)), (1, range(3, 8))):
        errors = [float((whole - outputs_of(model, "head", calibration.inputs, (c,))).square().sum()) for c in columns]
        assert int(np.argmin(scores.group(number))) == int(np.argmin(errors))
        assert len(scores.group(number)) == len(columns)


def test_outputs_are_drawn_from_larger_layers_by_a_generator_of_its_own(chain, monkeypatch):
    model, _ = chain
    calibration = Calibration(torch.randn(64, 1, 6, 6), torch.zeros(64))
    monkeypatch.setattr("pruning.importance.reconstruction.OUTPUTS_A_BATCH", 32 * 2 * 2 * 4 // 4)
    graph = trace_channels(model, calibration.inputs[:2])
    first = ImportanceScores(model, "reconstruction", graph, calibration).group(0)
    torch.rand(3)
    assert np.array_equal(first, ImportanceScores(model, "reconstruction", graph, calibration).group(0))
    whole = outputs_of(model, "second", calibration.inputs)
    errors = [float((whole - outputs_of(model, "second", calibration.inputs, (c,))).square().sum()) for c in range(6)]
    assert np.argmin(first) == np.argmin(errors)


def test_groups_without_one_next_layer_are_refused(residual, residual_graph, images):
    calibration = Calibration(images, torch.zeros(2, dtype=torch.long))
    streams = [n for n, g in enumerate(residual_graph.network.groups) if "first.weight" in g.layers]
    reason = "criterion 'reconstruction' needs one layer that reads its channels, found 2"
    assert reconstruction_obstacle(residual_graph, streams[0]) == reason
    plan = plan_removal(
        residual, {"first.weight": 0.25, "last.weight": 0.25, "inner.weight": 0.25}, images, "reconstruction",
        residual_graph, calibration=calibration,
    )  # fmt: skip
    assert plan.skipped == {"first.weight": reason, "last.weight": reason}
    assert set(plan.kept) == {"inner.weight", "norm.weight"} and len(plan.kept["inner.weight"]) == 9
    small = shrink(residual, plan)
    assert small.inner.weight.shape[0] == 9
    network = defined_groups(residual_graph, "reconstruction").network
    assert network.removable == ("inner.weight",) and network.by_name["last.weight"].obstacle == reason
    assert residual_graph.network.removable == ("first.weight", "inner.weight", "last.weight")
    with pytest.raises(ValueError, match=f"first.weight: {reason}"):
        ImportanceScores(residual, "reconstruction", residual_graph, calibration).group(streams[0])


class TestRefit:
    def small_of(self, chain, requests) -> tuple[nn.Module, nn.Module, object, Calibration]:
        model, _ = chain
        calibration = Calibration(torch.randn(200, 1, 6, 6), torch.zeros(200))
        plan = plan_removal(model, requests, calibration.inputs[:2], "reconstruction", calibration=calibration)
        return model, shrink(model, plan), plan, calibration

    def test_is_least_squares(self, chain):
        """numpy's solver, on the head whose inputs lost one channel of four."""
        model, small, plan, calibration = self.small_of(chain, {"second.weight": 0.25})
        before = copy.deepcopy(small.state_dict())
        fitted = refit_next_layers(model, small, plan, calibration)
        with torch.no_grad():
            hidden = small.norm(small.second(small.first(calibration.inputs).relu())).relu().flatten(1).double()
            wanted = (model(calibration.inputs) - model.head.bias).double()
        solution = np.linalg.lstsq(hidden.numpy(), wanted.numpy(), rcond=None)[0].T
        error = [float((hidden @ w.double().T - wanted).square().sum()) for w in (
            torch.from_numpy(solution), fitted.head.weight.detach(), small.head.weight.detach())]  # fmt: skip
        assert error[0] <= error[1] < 1.001 * error[0] < 0.9 * error[2]
        assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
        same = [name for name, tensor in fitted.state_dict().items() if torch.equal(tensor, before[name])]
        assert set(before) - set(same) == {"head.weight"}

    def test_both_layers_and_their_own_lost_channels(self, chain):
        model, small, plan, calibration = self.small_of(chain, {"first.weight": 0.5, "second.weight": 0.25})
        fitted = refit_next_layers(model, small, plan, calibration)
        assert fitted.second.weight.shape == (3, 3, 3, 3)
        with torch.no_grad():
            dense, plain, better = (m(calibration.inputs) for m in (model, small, fitted))
        assert float((better - dense).square().sum()) < 0.5 * float((plain - dense).square().sum())

    def test_fewer_rows_than_columns(self, chain, monkeypatch):
        """The other form of the same solution."""
        model, small, plan, calibration = self.small_of(chain, {"first.weight": 0.5})
        monkeypatch.setattr("pruning.importance.reconstruction.REFIT_ROWS", 21)
        rows = len(list(calibration.batches())) * 3
        assert rows < 27
        fitted = refit_next_layers(model, small, plan, calibration)
        assert not torch.equal(fitted.second.weight, small.second.weight)
        assert torch.isfinite(fitted.second.weight).all()

    def test_both_forms_of_the_solution_agree(self):
        torch.manual_seed(0)
        wide, outputs, start = torch.randn(5, 8).double(), torch.randn(5, 2).double(), torch.randn(2, 8).double()
        ridge = 1e-3 * float(wide.square().sum()) / 8
        normal = torch.linalg.inv(wide.T @ wide + ridge * torch.eye(8))
        torch.testing.assert_close(_ridge(wide, outputs, start), (normal @ (wide.T @ outputs + ridge * start.T)).T)
        tall = torch.randn(9, 8).double()
        ridge = 1e-3 * float(tall.square().sum()) / 8
        normal, outputs = torch.linalg.inv(tall.T @ tall + ridge * torch.eye(8)), torch.randn(9, 2).double()
        torch.testing.assert_close(_ridge(tall, outputs, start), (normal @ (tall.T @ outputs + ridge * start.T)).T)
        assert _ridge(torch.zeros(3, 8).double(), outputs[:3], start) is start
